"""The systemd unit and the DaemonSet: what the daemon relies on, and what would break it without a word."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctrport import __version__, config, defaults

PACKAGING = Path(__file__).parents[2] / "packaging"
UNIT = PACKAGING / "systemd" / "ctrport.service"
KUBERNETES = PACKAGING / "kubernetes"

# systemd.exec(5): each of these makes systemd run the service in a mount namespace of its own (some only with
# certain values, which is not worth telling apart here).
MOUNT_NAMESPACE = {
    "PrivateMounts", "MountFlags", "MountAPIVFS", "BindLogSockets", "DynamicUser", "LogNamespace",
    "RootDirectory", "RootImage", "RootHash", "RootVerity", "ExtensionImages", "ExtensionDirectories",
    "BindPaths", "BindReadOnlyPaths", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths",
    "NoExecPaths", "TemporaryFileSystem", "MountImages",
    "ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs",
    "ProtectControlGroups", "ProtectHostname", "ProtectProc", "ProcSubset",
    "PrivateTmp", "PrivateDevices", "PrivateIPC", "PrivateNetwork",
    "NetworkNamespacePath", "IPCNamespacePath",
    "LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted", "ImportCredential",
}  # fmt: skip


def read_unit(text: str) -> dict[str, dict[str, list[str]]]:
    """Give section -> directive -> values: a directive may stand several times, which configparser loses."""
    sections: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[] ")
            continue
        name, equals, value = line.partition("=")
        assert equals, f"not a directive: {line!r}"
        sections.setdefault(section, {}).setdefault(name.strip(), []).append(value.strip())
    return sections


@pytest.fixture(scope="module")
def unit() -> dict[str, dict[str, list[str]]]:
    return read_unit(UNIT.read_text())


@pytest.fixture(scope="module")
def service(unit: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    """Give the directives of [Service], of which each stands there once but for the steps of a reload."""
    several = {name for name, values in unit["Service"].items() if len(values) != 1}
    assert several == {"ExecReload"}
    return {name: values[0] for name, values in unit["Service"].items()}


def test_systemd_waits_for_the_first_pass(service: dict[str, str]):
    """The watcher itself says READY=1, by datagrams that systemd takes from nobody else."""
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert shlex.split(service["ExecStart"]) == ["/usr/bin/ctrport", "watch"]


def test_reload_checks_the_configuration_and_asks_for_it_to_be_read(unit: dict[str, dict[str, list[str]]]):
    """A file that is wrong makes the reload fail; the watcher takes SIGHUP for reading it and a full pass."""
    assert [shlex.split(command) for command in unit["Service"]["ExecReload"]] == [
        ["/usr/bin/ctrport", "config", "check"],
        ["/bin/kill", "-HUP", "$MAINPID"],
    ]


def test_it_comes_after_containerd_and_after_firewalls_that_flush(unit: dict[str, dict[str, list[str]]]):
    """Wanted, not required: mappings stay when containerd stops."""
    assert unit["Unit"]["Wants"] == ["containerd.service"]
    assert set(unit["Unit"]["After"][0].split()) == {
        "containerd.service",
        "nftables.service",
        "firewalld.service",
        "ufw.service",
        "netfilter-persistent.service",
    }
    assert "Requires" not in unit["Unit"]
    assert "BindsTo" not in unit["Unit"]


def test_a_crash_is_followed_by_another_start_for_ever_and_a_bad_configuration_is_not(
    unit: dict[str, dict[str, list[str]]], service: dict[str, str]
):
    """Exit code 2 is bad usage, in every command."""
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]


def test_directories_are_those_that_the_program_uses(service: dict[str, str]):
    """The names in the unit are relative to /var/lib and /run."""
    assert Path("/var/lib") / service["StateDirectory"] == defaults.ROOT
    assert Path("/run") / service["RuntimeDirectory"] == defaults.STATE


def test_a_restart_keeps_the_state_directory_and_only_root_gets_in(service: dict[str, str]):
    """It has what `flush` puts settings back to, and the socket by which ports are published."""
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["RuntimeDirectoryMode"] == "0700"


def test_the_service_has_the_mount_namespace_of_the_host(service: dict[str, str]):
    """Else containerd would not see the network namespaces that the watcher mounts on /run/netns."""
    assert set(service) & MOUNT_NAMESPACE == set()


def test_it_may_make_and_enter_network_namespaces_and_mount_them(service: dict[str, str]):
    """The rest of what root can do is taken away."""
    assert set(service["CapabilityBoundingSet"].split()) == {
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_SYS_ADMIN",
        "CAP_NET_BIND_SERVICE",
    }
    assert service["RestrictNamespaces"] == "net"
    assert "@mount" in service["SystemCallFilter"].split()
    assert {"AF_UNIX", "AF_NETLINK"} <= set(service["RestrictAddressFamilies"].split())


def test_containers_outlive_it(service: dict[str, str]):
    """Nothing of a container is in the service's control group, and nothing runs when it stops."""
    assert not {"ExecStop", "ExecStopPost"} & set(service)


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """Give what kustomize is told to apply, by kind."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    found = [yaml.safe_load((KUBERNETES / name).read_text()) for name in kustomization["resources"]]
    return {each["kind"]: each for each in (*found, kustomization)}


@pytest.fixture(scope="module")
def pod(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return dict(manifests["DaemonSet"]["spec"]["template"]["spec"])


def test_the_manifests_name_each_other(manifests: dict[str, dict[str, Any]], pod: dict[str, Any]):
    """Kustomize gives all of them one namespace; the DaemonSet has its service account and its ConfigMap."""
    kustomization = manifests["Kustomization"]
    assert set(manifests) == {"Namespace", "ServiceAccount", "DaemonSet", "Kustomization"}
    assert kustomization["namespace"] == manifests["Namespace"]["metadata"]["name"]
    assert pod["serviceAccountName"] == manifests["ServiceAccount"]["metadata"]["name"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    (generated,) = kustomization["configMapGenerator"]
    assert volumes["config"]["configMap"]["name"] == generated["name"]
    (container,) = pod["containers"]
    assert {each["name"] for each in container["volumeMounts"]} == set(volumes)


def test_its_configuration_is_good_with_and_without_the_example(tmp_path: Path):
    """As it comes pods may publish nothing; without the comment signs the example is a rule."""
    path = KUBERNETES / "config.toml"
    found = config.load(path, required=True)
    assert (found.sysctl_directory, found.policy.allow) == (None, ())
    lines = path.read_text().splitlines()
    example = tmp_path / "config.toml"
    example.write_text("\n".join(line.removeprefix("#") if line[:2] != "# " else line for line in lines))
    assert len(config.load(example, required=True).policy.allow) == 1


def test_the_pod_uses_the_default_places_and_this_version(pod: dict[str, Any]):
    """So no option has to be given to a command in the pod, or to one on the node."""
    (container,) = pod["containers"]
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}
    places = {Path(defaults.ADDRESS).parent: True, defaults.CONFIG.parent: True}
    for place, read_only in {**places, defaults.STATE: False}.items():
        assert mounts[str(place)] is read_only
    assert container["image"].endswith(f":{__version__}")


def test_the_pod_cannot_ask_the_api_server(pod: dict[str, Any], manifests: dict[str, dict[str, Any]]):
    """It has no token, and no role is bound to its account."""
    assert pod["automountServiceAccountToken"] is False
    assert manifests["ServiceAccount"]["automountServiceAccountToken"] is False


def test_one_watcher_a_node(manifests: dict[str, dict[str, Any]]):
    """The next one would not get the lock while the old one runs."""
    assert manifests["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
