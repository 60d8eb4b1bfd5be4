"""`ctrport doctor PORT`: the way of a packet, the stage that fails first, and what mends it."""

from __future__ import annotations

import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from lab import http_get, serve, until
from patient import Patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"
TRACE = "ctrport-doctor"


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
def unwatched(ctrport: Cli) -> Iterator[str]:
    """Give a container that is published on 8080 while no watcher runs, which would mend what a test breaks."""
    with ctrport.container("-p", "8080:80") as name:
        yield name


def failing(said: dict[str, Any]) -> dict[str, Any]:
    """Give the only finding of the stage that fails first."""
    stage = next(stage for stage in said["stages"] if stage["state"] == "failed")
    assert (said["code"], stage["stage"]) == (1, said["fails_at"])
    (finding,) = stage["findings"]
    return dict(finding)


def test_a_port_that_answers(ctrport: Cli, patient: Patient, lab: Lab, web: str):
    """Every stage is passed, the trace names the rule that translates, and nothing is left in the kernel."""
    before = ctrport.everything()
    said = patient.doctor("8080")
    assert (said["code"], said["answered"], said["verdict"], said["by"], said["others"], said["fails_at"]) == (
        0,
        True,
        "answered",
        f"container default/{web}",
        "",
        None,
    )
    assert [stage["stage"] for stage in said["stages"]] == [
        *("host", "mapping", "rules", "forwarding", "container", "listening"),
        *("its answer", "its answer", "from this host", "from this host"),
    ]
    assert {stage["state"] for stage in said["stages"]} == {"ok"}
    tried = [stage["what"] for stage in said["stages"][-2:]]
    for what, address in zip(tried, ("127.0.0.1", "[2001:db8::1]"), strict=True):
        assert what.startswith(
            f"{address}:8080/tcp: answered; translated by table inet ctrport, chain publish: rule"
        )
    assert ctrport.everything() == before
    lines = ctrport("doctor", "8080", check=True).stdout.splitlines()
    assert lines[-1] == f"8080/tcp: answered by container default/{web}"
    for spelled in ("8080/tcp", f"{HOST}:8080", "[2001:db8::1]:8080/tcp", "192.0.2.10:8080", "0.0.0.0:8080"):
        assert patient.doctor(spelled)["answered"], spelled
    assert http_get(lab.remote, HOST, 8080) == PAGE


def test_a_udp_port(ctrport: Cli, patient: Patient, watcher: Watcher):
    """UDP says nothing by itself: what is not refused counts, and what nobody listens on is refused."""
    assert watcher.running
    with ctrport.container("-p", "5353:53/udp", "-p", "5354:54/udp") as name:

        def listen() -> socket.socket:
            made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            made.bind(("::", 53))
            return made

        with ctrport.inside(name).call(listen):
            said = patient.doctor("5353/udp")
            assert (said["code"], said["verdict"]) == (0, "sent")
        said = patient.doctor("5354/udp")
        assert failing(said)["code"] == "container-not-listening"
        assert said["verdict"] == "refused"


def test_a_port_that_nobody_publishes(patient: Patient, lab: Lab, web: str):
    """Said with who listens instead, and how to publish it."""
    assert web
    said = patient.doctor("9999")
    assert failing(said)["code"] == "not-published"
    assert (said["verdict"], said["by"]) == ("refused", "this host, where nobody listens")
    assert "ctrport run -p 9999:CONTAINERPORT" in failing(said)["fix"][1]
    assert failing(patient.doctor("8080/udp"))["detail"] == f"published is 8080/tcp of default/{web}"
    with serve(lab.host, 9999) as server:
        said = patient.doctor("9999")
    assert (said["verdict"], said["by"]) == ("answered", "a program of this host")
    assert f"(pid {server.pid}) on 0.0.0.0:9999/tcp" in said["stages"][0]["what"]


def test_the_ipv6_loopback(patient: Patient, web: str):
    """[::1] is refused by nature, and the address to use is named."""
    assert web
    finding = failing(patient.doctor("[::1]:8080"))
    assert finding["code"] == "ipv6-loopback"
    assert '"answered": true' in patient.shell(
        f"{finding['fix'][0]} --format json".replace("  #", " --format json #")
    )


def test_a_mapping_that_waits(ctrport: Cli, patient: Patient, web: str):
    """Who has the port, and beside it who waits for it."""
    name = ctrport.containerd.unique("plain")
    where = f"network:{ctrport.entry(web)['netns']}"
    annotation = "ctrport.io/publish=8080:80 203.0.113.9:8090:80"
    ctr = ctrport.containerd.ctr
    ctr("run", "-d", "--annotation", annotation, "--with-ns", where, ctrport.containerd.image, name, "sleep", "600")
    try:
        ctrport("sync", check=True)
        said = patient.doctor("8080")
        assert said["answered"]
        assert f"default/{name} waiting: 8080/tcp is held by container default/{web}" in said["stages"][1]["what"]
        assert failing(patient.doctor("8090"))["code"] == "port-refused"
    finally:
        ctr("tasks", "kill", "-s", "SIGKILL", name)
        ctr("tasks", "rm", "-f", name)
        ctr("containers", "rm", name)


def test_a_container_that_has_ended(ctrport: Cli, patient: Patient, lab: Lab, web: str):
    """The commands start it, and the port answers."""
    ctrport.containerd.ctr("tasks", "kill", "-s", "SIGKILL", web)
    until(lambda: "8080" not in ctrport("ps", check=True).stdout, what="the end of the mapping")
    finding = failing(patient.doctor("8080"))
    assert finding["code"] == "container-not-running"
    assert finding["what"] == f"container default/{web} is stopped"
    patient.mend(finding)
    until(lambda: http_get(lab.remote, HOST, 8080) == PAGE, what="the page")
    assert patient.doctor("8080")["answered"]


def test_a_container_that_is_paused(ctrport: Cli, patient: Patient, web: str):
    """It keeps its port and answers nobody."""
    ctrport.containerd.ctr("tasks", "pause", web)
    finding = failing(patient.doctor("8080"))
    assert finding["what"] == f"container default/{web} is paused"
    patient.mend(finding)
    assert patient.doctor("8080")["answered"]


@pytest.mark.parametrize(
    ("listen", "code"),
    [("127.0.0.1:80", "container-loopback-only"), ("0.0.0.0:81", "container-not-listening")],
)
def test_a_program_that_listens_elsewhere(ctrport: Cli, patient: Patient, listen: str, code: str):
    """On the container's own 127.0.0.1, or on another port: the most common complaint of all."""
    with ctrport.container("-p", "8080:80", command=("httpd", "-f", "-p", listen, "-h", "/www")) as name:
        said = patient.doctor("8080")
        finding = failing(said)
        assert (finding["code"], said["fails_at"]) == (code, "listening")
        assert (said["verdict"], said["by"]) == ("refused", f"container default/{name}")
        if code == "container-not-listening":
            assert finding["detail"] == "it listens on 81"


def test_a_program_that_listens_over_one_family(ctrport: Cli, patient: Patient):
    """Over IPv4 alone it answers there, and IPv6 clients are refused."""
    with ctrport.container("-p", "8080:80", command=("httpd", "-f", "-p", "0.0.0.0:80", "-h", "/www")):
        said = patient.doctor("8080")
        listening = next(stage for stage in said["stages"] if stage["stage"] == "listening")
        assert [finding["code"] for finding in listening["findings"]] == ["container-one-family"]
        outcomes = [(s["stage"], s["state"]) for s in said["stages"][-4:]]
        assert outcomes == [(n, s) for n in ("its answer", "from this host") for s in ("ok", "failed")]


def test_a_container_with_a_firewall_of_its_own(ctrport: Cli, patient: Patient, web: str):
    """What drops in the container's namespace is not this host's: the command lists it."""
    ctrport.inside(web).nft("table ip own { chain i { type filter hook input priority 0; policy drop; }; }")
    finding = failing(patient.doctor("8080"))
    assert finding["code"] == "container-no-answer"
    assert "chain i" in patient.shell("\n".join(finding["fix"]))


def test_an_element_that_is_gone(patient: Patient, lab: Lab, unwatched: str):
    """The rule that should translate is not there: a pass brings it back."""
    assert unwatched
    lab.host.nft("delete element inet ctrport published4 { tcp . 8080 }")
    said = patient.doctor(f"{HOST}:8080")
    assert (said["verdict"], said["by"]) == ("refused", "this host: its rules lead nowhere")
    assert failing(said)["code"] == "element-missing"
    patient.mend(failing(said))
    assert patient.doctor("8080")["answered"]


def test_a_drop_on_the_way_through(patient: Patient, lab: Lab, unwatched: str):
    """The host itself is answered, and other machines are not: the verdict tells of both."""
    lab.host.run("iptables-nft", "-P", "FORWARD", "DROP")
    said = patient.doctor("8080")
    assert (said["code"], said["verdict"], said["by"]) == (1, "answered", f"container default/{unwatched}")
    assert said["others"].startswith("iptables-nft table filter, chain FORWARD: policy DROP")
    finding = failing(said)
    assert finding["code"] == "forward-drop"
    patient.mend(finding)
    assert patient.doctor("8080")["answered"]
    assert http_get(lab.remote, HOST, 8080) == PAGE


@pytest.mark.parametrize(
    "rules",
    [
        "iptables-nft -t mangle -A OUTPUT -p tcp -d 127.0.0.1 --dport 8080 -j DROP",
        "nft 'table inet mine { chain o { type filter hook output priority -160; policy drop; }; }'",
    ],
    ids=["rule of iptables", "policy of nftables"],
)
def test_a_drop_on_the_way_out(patient: Patient, web: str, rules: str):
    """The trace of nft names the rule or policy that drops what the host itself sends; its command ends it."""
    assert web
    patient.shell(rules)
    said = patient.doctor("127.0.0.1:8080")
    assert said["verdict"] == "dropped"
    (finding,) = {f["what"]: f for s in said["stages"] for f in s["findings"]}.values()
    assert finding["code"] == "host-drop"
    assert finding["what"] == said["by"]
    patient.mend(finding)
    assert patient.doctor("127.0.0.1:8080")["answered"]
    assert TRACE not in patient.shell("nft list tables")


def test_somebody_else_s_translation(patient: Patient, lab: Lab, web: str):
    """A DNAT rule of others that comes first is named by the trace; without it the port is ours again."""
    assert web
    lab.host.nft(
        "table ip other { chain o { type nat hook output priority -110; tcp dport 8080 dnat to 192.0.2.2:9; }; }"
    )
    said = patient.doctor("127.0.0.1:8080")
    finding = failing(said)
    assert finding["code"] == "other-translation"
    assert "table ip other, chain o: rule with handle" in said["by"]
    patient.mend(finding)
    assert patient.doctor("127.0.0.1:8080")["answered"]


def test_a_drop_that_no_trace_tells_of(patient: Patient, lab: Lab, web: str):
    """Rules of iptables-legacy do not show in traces: that the container answers and its port does not is told."""
    assert web
    rule = ("OUTPUT", "-d", "127.0.0.1", "-p", "tcp", "--dport", "8080", "-j", "DROP")
    lab.host.run("iptables-legacy", "-t", "mangle", "-A", *rule)
    try:
        assert failing(patient.doctor("127.0.0.1:8080"))["code"] == "no-answer"
    finally:
        lab.host.run("iptables-legacy", "-t", "mangle", "-D", *rule)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ended_in_the_middle_of_a_trace(ctrport: Cli, patient: Patient, lab: Lab, web: str, number: signal.Signals):
    """The table of the trace goes with it; what SIGKILL leaves the next doctor takes away, and so does a flush."""
    assert web
    lab.host.nft("table inet mine { chain o { type filter hook output priority -160; tcp dport 80 drop; }; }")
    for _ in range(2):
        process = ctrport.popen("doctor", "8080", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: TRACE in lab.host.nft("list tables"), within=10, every=0, what="the trace")
        process.send_signal(number)
        assert process.wait(10) != 0
        if number != signal.SIGKILL:
            assert TRACE not in lab.host.nft("list tables")
            return
        assert TRACE in lab.host.nft("list tables")
        patient.doctor("8080")
        assert TRACE not in lab.host.nft("list tables")


def test_a_flush_takes_a_trace_that_was_left(ctrport: Cli, lab: Lab):
    """Whatever a doctor that was killed has left."""
    lab.host.nft("table inet ctrport-doctor { }")
    assert "removed table inet ctrport-doctor" in ctrport("flush", check=True).stdout
    assert lab.host.nft("list tables") == ""


def test_a_target_that_is_none(ctrport: Cli):
    """Bad usage, in one line."""
    for text in ("http", "0", "70000", "8080/icmp", "example.com:8080"):
        result = ctrport("doctor", text)
        assert (result.returncode, result.stdout) == (2, ""), text
        assert result.stderr.startswith("ctrport: ")
