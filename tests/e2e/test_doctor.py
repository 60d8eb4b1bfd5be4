"""`ctrport doctor`: each finding made true on the host, named, and gone after its fix was run as it is written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import http_get, serve, until
from patient import Patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"


@pytest.fixture
def patient(ctrport: Cli) -> Patient:
    return Patient(ctrport)


@pytest.fixture
def web(ctrport: Cli, watcher: Watcher) -> Iterator[str]:
    """Give a container that is published on 8080 by a running watcher."""
    del watcher
    with ctrport.container("-p", "8080:80") as name:
        yield name


@pytest.fixture
def unwatched(ctrport: Cli, patient: Patient) -> Iterator[str]:
    """Give a container that is published on 8080 while no watcher runs, which would mend what a test breaks."""
    with ctrport.container("-p", "8080:80") as name:
        patient.passes_over = "no-watcher"
        yield name


@contextlib.contextmanager
def annotated(ctrport: Cli, publish: str) -> Iterator[str]:
    """Start a container by plain ctr on a network of ours, with an annotation of its own."""
    name, ctr = ctrport.containerd.unique("plain"), ctrport.containerd.ctr
    with ctrport.container() as neighbour:
        where = f"network:{ctrport.entry(neighbour)['netns']}"
        annotation = f"ctrport.io/publish={publish}"
        ctr(
            "run",
            "-d",
            "--annotation",
            annotation,
            "--with-ns",
            where,
            ctrport.containerd.image,
            name,
            "sleep",
            "600",
        )
        try:
            ctrport("sync", check=True)
            yield name
        finally:
            ctr("tasks", "kill", "-s", "SIGKILL", name, check=False)
            ctr("tasks", "rm", "-f", name, check=False)
            ctr("containers", "rm", name)


def test_a_healthy_host(ctrport: Cli, patient: Patient, web: str):
    """No finding, exit 0, and nothing on the host is other than before."""
    before = ctrport.everything()
    assert patient.doctor() == {"version": 1, "findings": [], "code": 0}
    text = ctrport("doctor")
    assert (text.returncode, text.stdout) == (0, "nothing stands in the way of published ports\n")
    assert text.stderr == ""
    assert ctrport.everything() == before
    assert ctrport.entry(web)["status"] == "running"


def test_without_a_watcher(ctrport: Cli, patient: Patient):
    """A host where ctrport never ran: a warning, exit 0, and no directory is made by the look."""
    found = patient.findings()
    assert list(found) == ["no-watcher"]
    assert found["no-watcher"]["severity"] == "warning"
    assert not ctrport.state.exists()


def test_a_watcher_that_was_killed(patient: Patient, watcher: Watcher, web: str):
    """Its socket is left; the next one ends the finding, and the port has answered all the time."""
    assert web
    watcher.kill()
    found = patient.findings()
    assert list(found) == ["no-watcher"]
    assert "is left of one that was killed" in found["no-watcher"]["detail"]
    watcher.start()
    assert patient.findings() == {}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("net.ipv4.ip_forward", "ip-forward-off"),
        ("net.ipv6.conf.all.forwarding", "ipv6-forward-off"),
        ("net.ipv4.conf.ctrport0.route_localnet", "route-localnet-off"),
    ],
)
def test_settings(patient: Patient, lab: Lab, unwatched: str, name: str, code: str):
    """A setting that somebody turned off is named, and the command turns it on."""
    assert unwatched
    lab.host.sysctl(name, 0)
    found = patient.findings()
    assert list(found) == [code]
    assert found[code]["fix"] == [f"sysctl -w {name}=1"]
    patient.mend(found[code])
    assert patient.findings() == {}


def test_a_configuration_that_cannot_be_read(patient: Patient, ctrport: Cli, watcher: Watcher):
    """It is told with file, line and key, and all else is looked at by what the watcher does."""
    assert watcher.running
    ctrport.config.write_text("mark = 3\n")
    found = patient.findings()
    assert list(found) == ["bad-configuration"]
    assert f"{ctrport.config}: line 1: mark" in found["bad-configuration"]["detail"]
    ctrport.config.write_text("")
    assert patient.findings() == {}


def test_settings_that_cannot_be_written(patient: Patient, lab: Lab, unwatched: str):
    """With a read-only /proc/sys a wrong setting is told with it; a right one is fine."""
    assert unwatched
    closed = ("unshare", "-m", "sh", "-c")
    script = 'mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$0" "$@"'
    assert patient.findings(prefix=(*closed, script)) == {}
    lab.host.sysctl("net.ipv4.ip_forward", 0)
    found = patient.findings(prefix=(*closed, script))
    assert list(found) == ["ip-forward-off", "sysctl-read-only"]
    (mend,) = found["sysctl-read-only"]["fix"]
    assert list(patient.findings(prefix=(*closed, script.replace("exec", f"{mend}; exec")))) == ["ip-forward-off"]


def test_two_ways_out_and_a_strict_filter(patient: Patient, lab: Lab, web: str):
    """With a second default route rp_filter=1 drops clients; loose lets them pass."""
    assert web
    lab.host.sysctl("net.ipv4.conf.eth0.rp_filter", 1)
    assert patient.findings() == {}
    lab.host.ip(
        "link add name eth1 type bridge",
        "link set eth1 up",
        "address add 203.0.113.1/24 dev eth1",
        "route add default via 203.0.113.2 metric 100",
    )
    found = patient.findings()
    assert found["rp-filter-strict"]["fix"] == ["sysctl -w net.ipv4.conf.eth0.rp_filter=2"]
    patient.mend(found["rp-filter-strict"])
    assert "sysctl -w net.ipv4.conf.eth0.rp_filter" not in str(patient.findings())


@pytest.mark.parametrize(
    ("rules", "where"),
    [
        ("iptables-nft -P FORWARD DROP", "iptables-nft table filter, chain FORWARD: policy DROP"),
        ("iptables-legacy -A FORWARD -j DROP", "iptables-legacy table filter, chain FORWARD: rule 1"),
        (
            "nft 'table inet mine { chain f { type filter hook forward priority 0; policy drop; }; }'",
            "nftables table inet mine, chain f: the policy (drop)",
        ),
    ],
    ids=["policy of iptables-nft", "rule of iptables-legacy", "native nft"],
)
def test_a_forward_chain_that_drops(patient: Patient, lab: Lab, unwatched: str, rules: str, where: str):
    """A drop that came after our pass is named to table, chain and rule; the fix lets a remote client in again."""
    assert unwatched
    patient.shell(rules)
    assert http_get(lab.remote, HOST, 8080, timeout=0.3) != PAGE
    found = patient.findings()
    assert list(found) == ["forward-drop"]
    assert found["forward-drop"]["what"].startswith(where)
    patient.mend(found["forward-drop"])
    assert patient.findings() == {}
    assert http_get(lab.remote, HOST, 8080) == PAGE
    if "legacy" in rules:  # which outlives `nft flush ruleset`
        patient.shell("iptables-legacy -F; iptables-legacy -X")


def test_a_firewall_that_cannot_be_read(patient: Patient, web: str):
    """Rules of iptables without its programs: what they drop is not known, and that is said."""
    assert web
    patient.shell("iptables-nft -P FORWARD ACCEPT")
    hidden = ("unshare", "-m", "sh", "-c", 'mount --bind /dev/null /usr/sbin/xtables-nft-multi; exec "$0" "$@"')
    found = patient.findings(prefix=hidden)
    assert list(found) == ["firewall-unread"]
    assert found["firewall-unread"]["fix"] == ["apt-get install iptables"]


def test_drift(patient: Patient, lab: Lab, unwatched: str):
    """An element that somebody deleted is named; a pass brings it back."""
    lab.host.nft("delete element inet ctrport published4 { tcp . 8080 }")
    found = patient.findings()
    assert list(found) == ["drift"]
    assert found["drift"]["detail"].startswith(f'- published4: tcp . 8080 comment "default/{unwatched}"')
    patient.mend(found["drift"])
    assert patient.findings() == {}
    assert http_get(lab.remote, HOST, 8080) == PAGE


def test_a_bridge_that_is_gone(patient: Patient, lab: Lab, web: str):
    """The network's bridge was deleted under its containers; a pass connects them again."""
    assert web
    lab.host.ip("link delete ctrport0")
    found = patient.findings()
    assert "bridge-missing" in found
    patient.mend(found["bridge-missing"])
    assert patient.findings() == {}
    assert http_get(lab.remote, HOST, 8080) == PAGE


def test_a_port_that_a_program_has(ctrport: Cli, patient: Patient, lab: Lab, watcher: Watcher):
    """A mapping that waits for a program names it; the fix ends the program, and the container gets its port."""
    assert watcher.running
    server = serve(lab.host, 8080)
    with annotated(ctrport, "8080:80") as name:
        found = patient.findings()
        assert list(found) == ["port-conflict"]
        assert f"container default/{name} waits" in found["port-conflict"]["what"]
        assert f"kill {server.pid}" in found["port-conflict"]["fix"]
        patient.mend(found["port-conflict"])
        assert patient.findings() == {}
    server.close()


def test_a_port_that_a_container_has(ctrport: Cli, patient: Patient, web: str):
    """A mapping that waits for another container names it, and its command gives the port on."""
    with annotated(ctrport, "8080:80") as name:
        found = patient.findings()
        assert list(found) == ["port-conflict"]
        assert found["port-conflict"]["fix"] == [f"ctrport -n default stop {web}", "ctrport sync"]
        patient.mend(found["port-conflict"])
        assert patient.findings() == {}
        assert name


def test_requests_that_cannot_be_served(ctrport: Cli, patient: Patient, watcher: Watcher):
    """A host IP that is not here, and words that are no port spec, with or without a watcher."""
    with annotated(ctrport, "203.0.113.9:8080:80 80:x") as name:
        watched = patient.findings()
        assert list(watched) == ["port-refused", "bad-annotation"]
        assert "host IP 203.0.113.9 is not an address of this host" in watched["port-refused"]["what"]
        assert f"container default/{name} asks for a port that it does not get" in watched["bad-annotation"]["what"]
        watcher.terminate()
        alone = patient.findings()
        assert {**watched, "no-watcher": alone["no-watcher"]} == alone


def test_a_program_behind_a_published_port(ctrport: Cli, patient: Patient, lab: Lab):
    """A listener that came after the port was published hears nothing, and is told of by name."""
    with ctrport.container("-p", "8080:80"), serve(lab.host, 8080) as server:
        found = patient.findings()
        assert list(found) == ["no-watcher", "listener-shadowed"]
        assert f"(pid {server.pid}) listens on 0.0.0.0:8080/tcp" in found["listener-shadowed"]["what"]
    assert list(patient.findings()) == ["no-watcher"]


@pytest.mark.parametrize("theirs", ["10.208.0.0/24", "10.208.0.0/12"])
def test_a_subnet_that_somebody_has_too(ctrport: Cli, patient: Patient, lab: Lab, watcher: Watcher, theirs: str):
    """A route over our network: serious when it takes our packets; a free subnet is offered."""
    assert watcher.running
    with ctrport.container():
        pass
    lab.host.ip("link add name vpn0 type bridge", "link set vpn0 up", f"route add {theirs} dev vpn0")
    found = patient.findings()
    assert list(found) == ["subnet-collision"]
    assert found["subnet-collision"]["severity"] == ("serious" if theirs.endswith("/24") else "warning")
    assert f"overlaps the route {theirs} of vpn0" in found["subnet-collision"]["what"]
    if theirs.endswith("/24"):
        patient.mend(found["subnet-collision"])
        assert patient.findings() == {}
    else:  # all that we choose from is taken: the command says so
        assert found["subnet-collision"]["fix"][-1] == "ctrport network create default"


def test_containerd_that_is_away(ctrport: Cli, patient: Patient):
    """Told at once, and that the watcher's clock stands still."""
    ctrport.config.write_text("resync_seconds = 0.3\ntimeout_seconds = 2\n")
    process = ctrport.popen("watch", stderr=subprocess.DEVNULL)
    until((ctrport.state / "watch.sock").exists, what="a watcher")
    with ctrport.container("-p", "8080:80") as name:
        ctrport.containerd.kill()
        time.sleep(1.5)
        found = patient.findings()
        assert list(found) == ["containerd-away", "watcher-behind"]
        ctrport.containerd.start()
        until(lambda: patient.findings() == {}, within=20, what="no findings")
        assert name
    process.terminate()
    process.wait(10)


def test_containerd_that_is_away_and_no_watcher(ctrport: Cli, patient: Patient, lab: Lab):
    """What the kernel serves is judged."""
    with ctrport.container("-p", "8080:80"):
        ctrport.containerd.kill()
        lab.host.sysctl("net.ipv6.conf.all.forwarding", 0)
        try:
            assert list(patient.findings()) == ["ipv6-forward-off", "containerd-away", "no-watcher"]
        finally:
            ctrport.containerd.start()


def test_a_watcher_that_is_stuck(patient: Patient, watcher: Watcher):
    """A socket that takes a connection and does not answer."""
    watcher.signal(signal.SIGSTOP)
    try:
        found = patient.findings()
        assert list(found) == ["watcher-stuck"]
        assert f"(pid {watcher.pid})" in found["watcher-stuck"]["what"]
    finally:
        watcher.signal(signal.SIGCONT)
    assert patient.findings() == {}


def test_a_lock_without_a_socket(ctrport: Cli, patient: Patient, watcher: Watcher):
    """A watcher whose socket was deleted cannot be reached by anybody, until it has made another."""
    watcher.signal(signal.SIGSTOP)
    try:
        (ctrport.state / "watch.sock").unlink()
        found = patient.findings()
    finally:
        watcher.signal(signal.SIGCONT)
    assert list(found) == ["watcher-stuck"]
    assert "it has the lock, and no control socket" in found["watcher-stuck"]["what"]
    until(lambda: patient.findings() == {}, what="a socket")


def test_a_watcher_that_cannot_work(ctrport: Cli, patient: Patient):
    """Started while containerd is away it says why it is not ready."""
    ctrport.containerd.kill()
    process = ctrport.popen("watch", stderr=subprocess.DEVNULL)
    try:
        until((ctrport.state / "watch.sock").exists, what="a watcher")
        assert list(patient.findings()) == ["watcher-not-ready", "containerd-away"]
    finally:
        ctrport.containerd.start()
        process.terminate()
        process.wait(10)


def test_a_watcher_of_another_containerd(ctrport: Cli, patient: Patient, watcher: Watcher):
    """The finding names both; the command makes this shell speak of the one that is watched."""
    assert watcher.running
    elsewhere = {"CONTAINERD_ADDRESS": "/run/elsewhere.sock"}
    found = patient.findings(**elsewhere)
    assert list(found) == ["watcher-elsewhere", "containerd-away"]
    (fix,) = found["watcher-elsewhere"]["fix"]
    assert fix == f"export CONTAINERD_ADDRESS={ctrport.containerd.address}"
    assert json.loads(patient.shell(f"{fix}\nctrport doctor --format json", **elsewhere))["findings"] == []


def test_too_few_open_files(patient: Patient, watcher: Watcher, web: str):
    """A limit that someone has set low under the watcher, and the command that lifts it."""
    assert web
    subprocess.run(["prlimit", "--pid", str(watcher.pid), "--nofile=40:"], check=True, timeout=10)
    found = patient.findings()
    assert list(found) == ["open-files-limit"]
    patient.mend(found["open-files-limit"])
    assert patient.findings() == {}


def test_a_task_that_gives_no_answer(patient: Patient, watcher: Watcher, web: str):
    """A shim that hangs is told of, and the ports that stay for it are no drift."""
    shim = next(pid for pid in _processes() if web in _words(pid) and "shim" in _words(pid)[0])
    os.kill(shim, signal.SIGSTOP)
    try:
        watcher.signal(signal.SIGHUP)
        until(lambda: "tasks-uncertain" in patient.findings(), within=20, what="a pass that met the shim")
        assert list(patient.findings()) == ["tasks-uncertain"]
    finally:
        os.kill(shim, signal.SIGCONT)
    until(lambda: patient.findings() == {}, within=20, what="no findings")


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return [""]


def test_a_network_that_cannot_be_read(ctrport: Cli, patient: Patient, web: str):
    """A broken file is named as what could not be looked at, and the other checks are made."""
    assert web
    broken = ctrport.root / "networks" / "broken" / "network.json"
    broken.parent.mkdir()
    broken.write_text("{")
    found = patient.findings()
    assert list(found) == ["could-not-look"]
    assert str(broken) in found["could-not-look"]["what"]
    broken.unlink()
    broken.parent.rmdir()
    assert patient.findings() == {}


@pytest.mark.parametrize(
    "prefix",
    [
        ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"),
    ],
    ids=["another user", "root without CAP_NET_ADMIN"],
)
def test_without_privileges(ctrport: Cli, patient: Patient, web: str, prefix: tuple[str, ...]):
    """What could not be seen is said, and nothing is called healthy."""
    assert web
    ctrport.directory.chmod(0o755)
    found = patient.findings(prefix=prefix)
    assert list(found) == ["not-root"]
    assert "other people's firewalls" in found["not-root"]["detail"]


def test_without_the_nftables_library(ctrport: Cli, patient: Patient, web: str):
    """A Python that does not see Debian's module: told with the package, and no word of the kernel."""
    assert web
    hidden = ctrport.directory / "hidden"
    hidden.mkdir()
    (hidden / "nftables.py").write_text("raise ImportError('not here')\n")
    found = patient.findings(PYTHONPATH=f"{hidden}:{patient.environment['PYTHONPATH']}")
    assert list(found) == ["nftables-missing"]
    assert "python3-nftables" in found["nftables-missing"]["fix"][0]
