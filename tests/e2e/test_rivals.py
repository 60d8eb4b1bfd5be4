"""Commands and processes that get in each other's way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import http_get

if TYPE_CHECKING:
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"


@pytest.mark.parametrize("network", ["default", "none", "host"])
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "alone"])
def test_parallel_runs_of_one_name(ctrport: Cli, request: pytest.FixtureRequest, *, watched: bool, network: str):
    """Exactly one wins; the losers take nothing of its own away, and it is removed whole in the end."""
    if watched:
        request.getfixturevalue("watcher")
    before = ctrport.everything()
    name = ctrport.containerd.unique("same")
    ports = ("-p", "8080:80") if network == "default" else ()
    command = ("run", "-d", "--name", name, "--network", network, *ports, ctrport.containerd.image, "sleep", "600")
    runs = [ctrport.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(*each.communicate(timeout=60), each.returncode) for each in runs]
    assert sorted(code for _, _, code in ends) == [0, 125, 125], ends
    entry = ctrport.entry(name)
    assert (entry["status"], [m["state"] for m in entry["mappings"]]) == ("running", ["active"] * (len(ports) // 2))
    if network == "default":
        assert ctrport.execute(name, "cat", "/etc/hostname") == f"{name}\n"
    ctrport("rm", "-f", name, check=True)
    after = ctrport.everything()
    assert {**after, "rules": [], "links": [], "files": []} == {**before, "rules": [], "links": [], "files": []}


def test_a_shim_that_hangs_keeps_its_ports(ctrport: Cli, watcher: Watcher):
    """No answer about a task is no reason to close its ports, and those of others come and go meanwhile."""
    with ctrport.container("-p", "8080:80") as name:
        shim = shim_of(name)
        os.kill(shim, signal.SIGSTOP)
        try:
            watcher.signal(signal.SIGHUP)
            for _ in range(8):  # containerd gives up on a shim after 2 s
                time.sleep(0.5)
                assert http_get(ctrport.containerd.lab.remote, HOST, 8080) == PAGE
        finally:
            os.kill(shim, signal.SIGCONT)
        ctrport("sync", check=True)
        assert http_get(ctrport.containerd.lab.remote, HOST, 8080) == PAGE
        assert "unpublished" not in watcher.log


def test_stop_leaves_a_foreground_run_its_exit_code(ctrport: Cli):
    """`ctrport stop` ends a foreground container with the code that the container gave."""
    name = ctrport.containerd.unique("fg")
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    command = ("run", "--rm", "--name", name, ctrport.containerd.image, "sh", "-c", script)
    run = ctrport.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    ctrport("stop", name, check=False)
    output = run.communicate(timeout=20)
    assert run.returncode == 7, output


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "alone"])
def test_run_on_a_port_that_somebody_translates(ctrport: Cli, request: pytest.FixtureRequest, *, watched: bool):
    """It fails and names him; nothing is left of it, and his rule is as it was."""
    if watched:
        request.getfixturevalue("watcher")
    host = ctrport.containerd.lab.host
    rule = ("-p", "tcp", "-m", "tcp", "--dport", "8080", "-j", "DNAT", "--to-destination", "192.0.2.2:80")
    for command in (("-N", "DOCKER"), ("-A", "PREROUTING", "-j", "DOCKER"), ("-A", "DOCKER", *rule)):
        host.run("iptables-nft", "-t", "nat", *command)
    before = host.run("nft", "--stateless", "list", "table", "ip", "nat").stdout
    result = ctrport("run", "-d", "-p", "8080:80", ctrport.containerd.image)
    assert result.returncode == 125
    assert "8080/tcp is translated by Docker (chain DOCKER of iptables nat)" in result.stderr
    assert ctrport.json("ps", "-a")["containers"] == []
    assert host.run("nft", "--stateless", "list", "table", "ip", "nat").stdout == before


def test_a_watcher_without_privileges_says_so(ctrport: Cli):
    """What the host lacks is told in one line, at once, and not by a traceback or a start that hangs."""
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *ctrport.argv("watch")]
    result = ctrport.containerd.lab.host.run(*argv, check=False, timeout=20, env=ctrport.environment)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "Operation not permitted" in result.stderr
    assert "run as root (CAP_NET_ADMIN)" in result.stderr


def test_one_broken_lease_does_not_stop_the_others(ctrport: Cli, watcher: Watcher):
    """A lease whose network is gone is told in the log; passes go on."""
    with ctrport.container("-p", "8080:80"):
        leases = Path(ctrport.root) / "networks" / "default" / "leases"
        lease = next(iter(leases.iterdir())).read_text()
        foreign = leases.parent.parent / "gone" / "leases"
        foreign.mkdir(parents=True)
        (foreign / "203.0.113.9").write_text(
            lease.replace('"default", "ipv4"', '"gone", "ipv4"').replace(
                '"network": "default"', '"network": "gone"'
            )
        )
        ctrport("sync", check=True)
        assert "no network named 'gone'" in watcher.log
        assert http_get(ctrport.containerd.lab.remote, HOST, 8080) == PAGE
        (foreign / "203.0.113.9").unlink()


def test_another_containerd_is_refused(ctrport: Cli, watcher: Watcher):
    """A watcher is not asked about containers of a containerd that it does not watch."""
    assert watcher.running
    result = ctrport("--address", "/run/elsewhere.sock", "sync")
    assert result.returncode == 1
    assert f"watches {ctrport.containerd.address}, not /run/elsewhere.sock" in result.stderr


def shim_of(name: str) -> int:
    """Give the process id of a container's shim."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"containerd-shim" in words[0] and name.encode() in words:
                return int(entry.name)
    raise AssertionError(f"no shim of {name}")
