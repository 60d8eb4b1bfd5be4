"""The DaemonSet of packaging/kubernetes: its image, run through CRI with exactly the rights that its YAML says."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from containerd_instance import WEB, LabContainerd
from cri import NAMESPACE, NODE, TYPES, Cri
from images import pause_image, web_image
from lab import REFUSED, Lab, http_get, until

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from cri import Pod

SOURCE = Path(__file__).parents[2]
PACKAGING = SOURCE / "packaging" / "kubernetes"
HOST, HOST6 = "192.0.2.1", "2001:db8::1"
PAUSE = "docker.io/library/pause:test"
PAGE = "It works!\n"
# A policy that allows the pod of these tests its ports, as the example in the ConfigMap does.
ALLOWED = {"namespace": "web", "labels": {"tier": "edge"}}
# Every port below 1024 needs a right to hold it, and 127.0.0.1 a setting of the kernel.
PUBLISH = "443:80, 8080:80"


@pytest.fixture(scope="module")
def image() -> Path:
    """Give the image as an archive, built anew when what it is made of has changed."""
    parts = [*sorted((SOURCE / "src").rglob("*.py")), PACKAGING / "build_image.py"]
    parts += [SOURCE / "pyproject.toml", SOURCE / "requirements-dev.lock"]
    key = hashlib.sha256(b"\0".join(part.read_bytes() for part in parts)).hexdigest()[:12]
    archive = SOURCE / ".cache" / "image" / f"ctrport-{key}.tar"
    if not archive.exists():
        for old in archive.parent.glob("ctrport-*.tar"):
            old.unlink()
        archive.parent.mkdir(parents=True, exist_ok=True)
        draft = archive.with_suffix(".draft")
        subprocess.run([PACKAGING / "build_image.py", draft], check=True, timeout=900)
        draft.rename(archive)
    return archive


@pytest.fixture(scope="module")
def containerd(image: Path, containerd_path: str | None) -> Iterator[LabContainerd]:
    """Give a node: a containerd with CRI and the images, and a pod network of both families."""
    with (
        Lab(forwarding=False) as lab,
        LabContainerd(lab, path=containerd_path, cri=True, sandbox_image=PAUSE) as instance,
        Cri(instance) as cri,
    ):
        for build, ref in ((pause_image, PAUSE), (web_image, WEB)):
            archive = build(instance.directory / "image.tar", ref)
            instance.import_image(archive, namespace=NAMESPACE)
            archive.unlink()
            cri.wait_for_image(ref)
        instance.import_image(image, namespace=NAMESPACE)
        cri.wait_for_image(described()["image"])
        ipam: dict[str, Any] = {
            "type": "host-local",
            "dataDir": str(instance.directory / "leases"),
            "ranges": [[{"subnet": "198.51.100.0/26"}], [{"subnet": "2001:db8:a::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
        (instance.directory / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        until(lambda: "pods" in cri.network_names(), within=20, what="the pod network")
        # What the DaemonSet mounts has the socket by its usual name; a restart makes it anew behind the link.
        (instance.directory / "containerd.sock").symlink_to("c.sock")
        yield instance


@pytest.fixture
def node(containerd: LabContainerd) -> Iterator[Node]:
    """Give the node, behind a firewall of iptables-legacy that drops what is forwarded; pods are removed."""
    host = containerd.lab.host
    with tempfile.TemporaryDirectory() as directory, Cri(containerd) as cri:
        host.run("iptables-legacy", "-P", "FORWARD", "DROP")
        try:
            yield Node(containerd, cri, Path(directory))
        finally:
            cri.remove_all()
            host.run("iptables-legacy", "-P", "FORWARD", "ACCEPT")
            for option in ("-F", "-X"):
                host.run("iptables-legacy", option)


def daemonset() -> dict[str, Any]:
    """Give the pod that the DaemonSet makes."""
    loaded: dict[str, Any] = yaml.safe_load((PACKAGING / "daemonset.yaml").read_text())
    return dict(loaded["spec"]["template"]["spec"])


def described(pod: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give its container."""
    (container,) = (pod or daemonset())["containers"]
    return dict(container)


def example() -> str:
    """Give config.toml of the ConfigMap with its example of a rule switched on."""
    lines = (PACKAGING / "config.toml").read_text().splitlines()
    return "\n".join(line.removeprefix("#") if line[:2] != "# " else line for line in lines)


def flushing() -> dict[str, Any]:
    """Give the pod that flush.yaml makes of the DaemonSet's, for its first container."""
    document: Any = yaml.safe_load((PACKAGING / "daemonset.yaml").read_text())

    def inner(path: str) -> tuple[Any, Any]:
        *parents, last = path.strip("/").split("/")
        place = document
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        return place, int(last) if isinstance(place, list) else last

    for step in yaml.safe_load((PACKAGING / "flush.yaml").read_text()):  # RFC 6902
        place, key = inner(step["path"])
        if step["op"] == "copy":
            source, name = inner(step["from"])
            place.insert(key, copy.deepcopy(source[name]))
        elif step["op"] == "remove":
            del place[key]
        else:
            assert (step["op"], key in place) in {("add", False), ("replace", True)}
            place[key] = step["value"]
    pod: dict[str, Any] = document["spec"]["template"]["spec"]
    return {**pod, "containers": pod["initContainers"]}


class Node:
    """What the kubelet does with the DaemonSet's pod on a node."""

    def __init__(self, containerd: LabContainerd, cri: Cri, directory: Path) -> None:
        self.containerd, self.cri, self.directory = containerd, cri, directory
        self.lab = containerd.lab
        self._attempts = 0
        self._pod: Pod | None = None

    def run(self, pod: Mapping[str, Any]) -> str:
        """Run the pod's container as its YAML says; gives its id."""
        container = described(pod)
        security = container["securityContext"]
        assert security["privileged"] is False
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        modes = {"network": NODE if pod["hostNetwork"] else 0, "pid": NODE if pod["hostPID"] else 0}
        if self._pod is None:
            self._pod = self.cri.run("ctrport", host_network=modes["network"] == NODE, host_pid=pod["hostPID"])
        self._attempts += 1
        config = TYPES["ContainerConfig"](
            metadata={"name": container["name"], "attempt": self._attempts},
            image={"image": container["image"]},
            command=container["command"],
            envs=[{"key": each["name"], "value": each["value"]} for each in container["env"]],
            mounts=[
                {
                    "container_path": each["mountPath"],
                    "host_path": str(self.place(each["name"], pod)),
                    "readonly": each.get("readOnly", False),
                }
                for each in container["volumeMounts"]
            ],
            log_path=self.log_path.name,
            linux={
                "security_context": {
                    "capabilities": {
                        "add_capabilities": security["capabilities"]["add"],
                        "drop_capabilities": security["capabilities"]["drop"],
                    },
                    "privileged": False,
                    "namespace_options": modes,
                    "run_as_user": {"value": security["runAsUser"]},
                    "readonly_rootfs": security["readOnlyRootFilesystem"],
                    "no_new_privs": not security["allowPrivilegeEscalation"],
                    "seccomp": {"profile_type": 0},  # RuntimeDefault
                }
            },
        )
        return self.cri.start(self._pod, config)

    def place(self, name: str, pod: Mapping[str, Any]) -> Path:
        """Give what a volume mounts: the kernel's own files, else files of this node and not of the machine."""
        volume = next(each for each in pod["volumes"] if each["name"] == name)
        if "configMap" in volume:
            path = self.directory / "configmap"
            path.mkdir(exist_ok=True)
            (path / "config.toml").write_text(example())
            return path
        path, kind = Path(volume["hostPath"]["path"]), volume["hostPath"]["type"]
        if path == Path("/run/containerd"):
            return self.containerd.directory
        if path.is_relative_to("/proc"):
            return path
        path = self.directory / path.relative_to("/")
        if kind == "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True)
        elif kind == "FileOrCreate":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            raise AssertionError(f"{path}: {kind}")
        return path

    @property
    def log_path(self) -> Path:
        """Where the output goes of the container that was started last."""
        return self.containerd.directory / "logs" / f"{self.directory.name}-{self._attempts}.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def says(self, text: str) -> None:
        try:
            until(lambda: text in self.log, within=30)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in the log:\n{self.log}") from None

    def execute(self, container: str, *command: str) -> tuple[int, str]:
        """Run a command in the container as a probe does; gives its exit code, and what it says."""
        answer = self.cri.call("ExecSync", container_id=container, cmd=command, timeout=40)
        return answer.exit_code, (answer.stdout + answer.stderr).decode()

    def end(self, container: str) -> None:
        """Stop and remove a container, as the kubelet does."""
        self.cri.call("StopContainer", container_id=container, timeout=20)
        self.cri.call("RemoveContainer", container_id=container)

    def web(self, name: str = "web", publish: str = PUBLISH, **options: Any) -> Pod:
        """Run a pod that serves a page and asks for ports."""
        pod = self.cri.run(name, publish, **{**ALLOWED, **options})
        self.cri.start_container(pod, "httpd", WEB)
        return pod

    def answered(self) -> dict[str, bool]:
        """Say from where, and where, the page is given now."""
        tries = {
            "443": (self.lab.remote, HOST, 443),
            "8080": (self.lab.remote, HOST, 8080),
            "127.0.0.1:8080": (self.lab.host, "127.0.0.1", 8080),
        }
        return {name: http_get(*each, timeout=1) == PAGE for name, each in tries.items()}


ALL = {"443": True, "8080": True, "127.0.0.1:8080": True}


def test_from_apply_to_answer(node: Node):
    """With no right but the DaemonSet's, a pod's ports are served on the node; then all is taken away again."""
    lab, pod = node.lab, daemonset()
    container = node.run(pod)
    node.says("watching containerd")
    web = node.web()
    other = node.web("other", "8081:80", namespace="shop")
    until(lambda: node.answered() == ALL, within=20, what="the page everywhere")
    assert http_get(lab.remote, HOST6, 443) == PAGE
    assert http_get(lab.remote, HOST, 8081) is REFUSED
    for probe in ("readinessProbe", "livenessProbe"):
        code, said = node.execute(container, *described(pod)[probe]["exec"]["command"])
        assert (code, "warning" in said) == (0, False), (probe, said)
    shown = node.execute(container, "ctrport", "-n", NAMESPACE, "ps")[1]
    assert "0.0.0.0:443->80/tcp" in shown
    assert 'no rule allows pods of Kubernetes namespace "shop" to publish' in shown
    assert node.execute(container, "ctrport", "sync") == (0, "in sync: 0 changes\n")
    # A restart of containerd, and the next version of the DaemonSet: ports stay, and changes are followed.
    node.containerd.restart()
    until(node.cri.answers, within=20, what="CRI after the restart")
    node.end(container)
    assert node.answered() == ALL
    container = node.run(pod)
    node.says("watching containerd")
    node.cri.remove(other)
    node.cri.remove(web)
    until(lambda: http_get(lab.remote, HOST, 8080) is REFUSED, within=20, what="the refusal")
    node.end(container)
    assert lab.host.sysctl("net.ipv4.conf.cni0.route_localnet") == "1"
    node.run(flushing())
    node.says("put back net.ipv4.conf.cni0.route_localnet from 1 to 0")
    assert lab.host.sysctl("net.ipv4.conf.cni0.route_localnet") == "0"
    assert "ctrport" not in lab.host.run("nft", "list", "tables").stdout
    assert "CTRPORT" not in lab.host.run("iptables-legacy-save").stdout


@pytest.mark.parametrize(
    ("withheld", "said", "answered"),
    [
        ("NET_ADMIN", "run as root (CAP_NET_ADMIN)", set()),
        ("NET_RAW", "iptables-legacy", {"127.0.0.1:8080"}),
        ("NET_BIND_SERVICE", "not held against other programs: 443/tcp: Permission denied", ALL),
        ("settings", "route_localnet is 0, and setting it to 1 failed", {"443", "8080"}),
        ("xtables-lock", "iptables-legacy", {"127.0.0.1:8080"}),
        ("hostPID", "watching containerd", set()),
    ],
)
def test_no_right_is_too_many(node: Node, withheld: str, said: str, answered: Collection[str]):
    """Without any capability, mount of the node or its process ids a port fails, or is not held."""
    pod = copy.deepcopy(daemonset())
    (container,) = pod["containers"]
    if withheld == "hostPID":
        pod["hostPID"] = False
    elif withheld.isupper():
        container["securityContext"]["capabilities"]["add"].remove(withheld)
    else:
        container["volumeMounts"] = [each for each in container["volumeMounts"] if each["name"] != withheld]
    node.web()
    node.run(pod)
    node.says(said)
    expected = {name: name in answered for name in ALL}
    try:
        until(lambda: node.answered() == expected, within=20)
    except AssertionError:
        raise AssertionError(f"{node.answered()} and not {expected}:\n{node.log}") from None
