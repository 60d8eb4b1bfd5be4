"""Kernel settings around the whole program: the real `sysctl --system`, a read-only /proc/sys, others' changes."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import REFUSED, TIMEOUT, http_get, until
from program import Cli, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from containerd_instance import LabContainerd

PAGE = "It works!\n"
FILE = "/run/sysctl.d/99-ctrport.conf"
# A machine's own files, empty, and nothing of it outside of this mount namespace. What the real ones say is not to
# be set again by a test.
OWN_FILES = """
set -e
for each in /run /etc/sysctl.d /usr/lib/sysctl.d /usr/local/lib/sysctl.d; do
    if [ -d $each ]; then mount -t tmpfs tmpfs $each; fi
done
if [ -e /etc/sysctl.conf ]; then mount --bind /dev/null /etc/sysctl.conf; fi
echo ready
exec sleep 600
"""
# Namespaces that are mounted on /run/netns must be seen outside, this mount must not.
READ_ONLY = """
set -e
mount --make-rprivate /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$@"
"""


class InNamespaces(Cli):
    """The program in the mount and process namespaces of a process."""

    target = 0

    def enter(self, *argv: str | Path) -> list[str]:
        return ["nsenter", f"--target={self.target}", "--mount", "--pid", "--", *map(str, argv)]

    def argv(self, *arguments: str | Path) -> list[str]:
        return self.enter(*super().argv(*arguments))

    def run(self, *argv: str | Path, text: str | None = None) -> str:
        """Run any command there; what fails raises."""
        return self.containerd.lab.host.run(*self.enter(*argv), input=text).stdout


class ReadOnly(Cli):
    """The program where /proc/sys is read-only."""

    def argv(self, *arguments: str | Path) -> list[str]:
        program = super().argv(*arguments)
        return ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", READ_ONLY, "sh", *program]


@pytest.fixture
def machine(containerd: LabContainerd) -> Iterator[InNamespaces]:
    """Give the program on a machine of its own: process 1 is in the lab's host, no file sets anything."""
    holder = containerd.lab.host.popen(
        *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c", OWN_FILES),
        stdout=subprocess.PIPE,
        text=True,
    )
    cli = InNamespaces(containerd, Path(tempfile.mkdtemp(prefix="ctrport-")))
    try:
        assert holder.stdout.readline() == "ready\n"
        cli.target = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
        yield cli
    finally:
        cli.close()
        holder.kill()
        holder.wait(10)


@pytest.fixture
def readonly(containerd: LabContainerd) -> Iterator[ReadOnly]:
    """Give the program with a read-only /proc/sys."""
    cli = ReadOnly(containerd, Path(tempfile.mkdtemp(prefix="ctrport-")))
    try:
        yield cli
    finally:
        cli.close()


def test_sysctl_system_does_not_undo_what_ports_need(machine: InNamespaces, containerd: LabContainerd):
    """Files that sort before ours do not count, nor patterns; one that sorts after does, until the next pass."""
    host = containerd.lab.host
    machine("network", "create", "one", check=True)
    (bridge,) = (each["bridge"] for each in machine.json("network", "ls")["networks"])
    names = ("net/ipv4/ip_forward", f"net/ipv4/conf/{bridge}/route_localnet")
    assert [host.sysctl(name) for name in names] == ["1", "1"]
    assert [f"-{name} = 1" in machine.run("cat", FILE).splitlines() for name in names] == [True, True]
    opposing = "net.ipv4.ip_forward = 0\nnet.ipv4.conf.*.route_localnet = 0\nnet.ipv4.conf.*.rp_filter = 1\n"
    machine.run("tee", "/etc/sysctl.d/98-site.conf", text=opposing)
    machine.run("sysctl", "--system")
    assert [host.sysctl(name) for name in names] == ["1", "1"]
    loose = f"net/ipv4/conf/{bridge}/rp_filter"
    assert host.sysctl(loose) == "1"  # strict only now: the next pass loosens it, and then it is kept
    for command in (("sync",), ("sync",)):
        machine(*command, check=True)
        machine.run("sysctl", "--system")
        assert host.sysctl(loose) == "2"
    assert host.sysctl("net/ipv4/conf/eth0/rp_filter") == "1"
    later = f"{names[0]} = 0\n{names[1]} = 0\n{loose} = 1\n"
    machine.run("tee", "/etc/sysctl.d/99-zz.conf", text=later)
    machine.run("sysctl", "--system")
    assert [host.sysctl(name) for name in (*names, loose)] == ["0", "0", "1"]
    machine("sync", check=True)
    assert [host.sysctl(name) for name in (*names, loose)] == ["1", "1", "2"]


def test_the_file_outlives_no_flush_and_no_interface(machine: InNamespaces, containerd: LabContainerd):
    """For an interface that is gone `sysctl --system` does not fail; a flush removes the file."""
    machine("network", "create", "one", check=True)
    (bridge,) = (each["bridge"] for each in machine.json("network", "ls")["networks"])
    containerd.lab.host.ip(f"link delete {bridge}")
    assert bridge in machine.run("cat", FILE)
    machine.run("sysctl", "--system")
    assert f"removed {FILE}" in machine("flush", check=True).stdout.splitlines()
    assert machine.run("ls", "/run/sysctl.d") == ""


def test_another_namespace_leaves_the_machine_s_file_alone(ctrport: Cli):
    """A lab's host is not the network namespace of the machine's process 1."""
    before = Path(FILE).read_bytes() if Path(FILE).exists() else None
    with ctrport.container("-p", "8080:80"):
        assert (Path(FILE).read_bytes() if Path(FILE).exists() else None) == before


def test_somebody_switches_forwarding_off(ctrport: Cli, watcher: Watcher, containerd: LabContainerd):
    """The port is dead from outside for a moment; it is set again, and the log says what was wrong."""
    lab = containerd.lab
    with ctrport.container("-p", "8080:80"):
        until(lambda: http_get(lab.remote, "192.0.2.1", 8080) == PAGE, what="the page")
        mark = len(watcher.log)
        lab.host.sysctl("net.ipv4.ip_forward", 0)
        until(lambda: "had another value" in watcher.log[mark:], within=10, what="the watcher's words")
        assert http_get(lab.remote, "192.0.2.1", 8080) == PAGE
        first, second = (line for line in watcher.log[mark:].splitlines() if "ip_forward" in line)
        assert first.endswith("INFO    set net.ipv4.ip_forward from 0 to 1: published ports are forwarded")
        assert "somebody: net.ipv4.ip_forward had another value; put right in" in second


def test_a_read_only_proc_with_the_right_values(ctrport: Cli, readonly: ReadOnly, containerd: LabContainerd):
    """Nothing needs to be written, and nothing is said but that no watcher runs."""
    readonly.root, readonly.state = ctrport.root, ctrport.state
    with ctrport.container("-p", "8080:80"):
        result = readonly("sync")
        assert (result.returncode, result.stdout) == (0, "in sync: 1 changes\n")  # all that it did not know
        assert "Read-only" not in result.stderr
        assert http_get(containerd.lab.remote, "192.0.2.1", 8080) == PAGE


def test_a_read_only_proc_with_a_wrong_value(ctrport: Cli, readonly: ReadOnly, containerd: LabContainerd):
    """`sync` names setting, value and command and exits with 1; the rules are put right all the same."""
    lab = containerd.lab
    readonly.root, readonly.state = ctrport.root, ctrport.state
    said = (
        "net.ipv4.ip_forward is 0, and setting it to 1 failed: Read-only file system (published ports are "
        "forwarded); mend it with: sysctl -w net.ipv4.ip_forward=1"
    )
    with ctrport.container("-p", "8080:80"):
        lab.host.sysctl("net.ipv4.ip_forward", 0)
        lab.host.nft("delete table inet ctrport")
        result = readonly("sync")
        assert (result.returncode, result.stdout) == (1, "not in sync: 1 changes\n")
        assert [line for line in result.stderr.splitlines() if "ip_forward" in line] == [f"error: {said}"]
        assert readonly("rules", "--diff").returncode == 0
        found = readonly("sync", "--format", "json")
        assert (found.returncode, f'"{said}"' in found.stdout) == (1, True)
        lab.host.run("sysctl", "-w", "net.ipv4.ip_forward=1")
        assert readonly("sync").returncode == 0
        assert http_get(lab.remote, "192.0.2.1", 8080) == PAGE


def test_a_watcher_with_a_read_only_proc(readonly: ReadOnly, containerd: LabContainerd):
    """It says once what it cannot set, and goes on; `run` and `sync` through it say it to their user."""
    lab = containerd.lab
    watcher = Watcher(readonly)
    watcher.start()
    plain = Cli.argv(readonly, "run", "-d", "--name", name := containerd.unique("web"), "-p", "8080:80")
    try:
        result = lab.host.run(*plain, containerd.image, check=False, env=readonly.environment)
        try:
            assert (result.returncode, result.stdout) == (0, f"{name}\n"), result.stderr
            told = [line.split(" is ")[0] for line in result.stderr.splitlines()]
            assert "warning: net.ipv4.ip_forward" in told
            assert "warning: net.ipv4.conf.ctrport0.route_localnet" in told
            assert http_get(lab.remote, "192.0.2.1", 8080) is TIMEOUT
            assert http_get(lab.host, "192.0.2.1", 8080) == PAGE
            for _ in range(3):
                synced = readonly("sync")
                assert (synced.returncode, synced.stdout) == (1, "not in sync: 0 changes\n")
                assert "warning: net.ipv4.ip_forward is 0, and setting it to 1 failed" in synced.stderr
            assert watcher.log.count("net.ipv4.ip_forward is 0") == 1
            lab.host.sysctl("net.ipv4.ip_forward", 1)
            watcher.signal(signal.SIGHUP)
            until(lambda: http_get(lab.remote, "192.0.2.1", 8080) == PAGE, what="the page")
        finally:
            readonly("rm", "-f", name)
        assert http_get(lab.remote, "192.0.2.1", 8080) is REFUSED
    finally:
        watcher.terminate()
