"""What other users of the machine can do to the daemon, and what it could do if somebody took it over."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import http_get, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"
UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "ctrport.service"
NOBODY = 65534


def capabilities() -> list[str]:
    """Give those of the unit, as setpriv names them."""
    (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
    return [name.removeprefix("CAP_").lower() for name in line.partition("=")[2].split()]


CAPABILITIES = capabilities()


@pytest.mark.parametrize(
    ("owner", "mode", "said"),
    [
        (NOBODY, 0o700, f"belongs to another user ({NOBODY})"),
        (0, 0o777, "can be written to by others (mode 0777)"),
        (0, 0o1777, "can be written to by others (mode 1777)"),
        (0, 0o720, "can be written to by others (mode 0720)"),
    ],
)
def test_a_state_directory_of_others(ctrport: Cli, owner: int, mode: int, said: str):
    """Where others could put a lock or a watcher's socket of their own, every command refuses to go on."""
    ctrport.state.mkdir()
    os.chown(ctrport.state, owner, owner)
    ctrport.state.chmod(mode)
    before = ctrport.everything()
    run = ("run", "-d", "-p", "8080:80", ctrport.containerd.image)
    for code, arguments in ((1, ("watch",)), (1, ("sync",)), (125, run), (1, ("flush",))):
        result = ctrport(*arguments)
        assert (result.returncode, result.stdout) == (code, ""), result
        assert f"the state directory {ctrport.state} {said}" in result.stderr
        assert f"chown root: {ctrport.state}; chmod go-w {ctrport.state}" in result.stderr
        assert list(ctrport.state.iterdir()) == []
    assert ctrport.everything() == before


def test_a_state_directory_by_a_link_of_others(ctrport: Cli):
    """A link that somebody else may turn elsewhere is no state directory."""
    real = ctrport.directory / "real"
    real.mkdir(mode=0o700)
    ctrport.state.symlink_to(real)
    os.lchown(ctrport.state, NOBODY, NOBODY)
    result = ctrport("sync")
    assert result.returncode == 1
    assert f"belongs to another user ({NOBODY})" in result.stderr
    assert list(real.iterdir()) == []


def test_links_in_the_state_directory(ctrport: Cli, lab: Lab):
    """A lock that is a link is refused; a control socket that is one is replaced; nothing is written through."""
    victim = ctrport.directory / "victim"
    victim.write_text("untouched")
    ctrport.state.mkdir(mode=0o700)
    (ctrport.state / "lock").symlink_to(victim)
    result = ctrport("sync")
    assert result.returncode == 1
    assert f"cannot open the lock {ctrport.state}/lock" in result.stderr
    (ctrport.state / "lock").unlink()
    (ctrport.state / "watch.sock").symlink_to(victim)
    with limited(ctrport, CAPABILITIES), ctrport.container("-p", "8080:80"):
        until(lambda: http_get(lab.remote, HOST, 8080) == PAGE, what="the page")
        there = (ctrport.state / "watch.sock").lstat()
        assert stat.S_ISSOCK(there.st_mode)
        assert stat.S_IMODE(there.st_mode) == 0o600
    assert victim.read_text() == "untouched"
    victim.unlink()


def test_the_control_socket_is_roots(ctrport: Cli, watcher: Watcher):
    """Nobody else can ask the watcher for anything, even where the state directory lets them through."""
    assert watcher.running
    assert stat.S_IMODE(ctrport.state.stat().st_mode) == 0o700
    ctrport.directory.chmod(0o755)
    ctrport.state.chmod(0o755)
    user = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    host = ctrport.containerd.lab.host
    result = host.run(*user, *ctrport.argv("sync"), check=False, env=ctrport.environment)
    assert result.returncode == 1
    assert "permission denied" in result.stderr.lower()
    assert [path.name for path in ctrport.state.iterdir() if stat.S_IMODE(path.stat().st_mode) & 0o022] == []


def test_nothing_listens(ctrport: Cli, watcher: Watcher, lab: Lab):
    """The watcher is reached by its own socket only: no TCP, UDP or raw socket of it takes a packet."""
    with ctrport.container("-p", "8080:80", "-p", "5353:53/udp"):
        until(lambda: http_get(lab.remote, HOST, 8080) == PAGE, what="the page")
        assert watcher.running
        assert lab.host.run("ss", "-H", "--tcp", "--listening").stdout == ""
        assert lab.host.run("ss", "-H", "--raw", "--packet", "--all").stdout == ""
        # What holds published ports is bound to an interface that does not exist.
        held = lab.host.run("ss", "-H", "--udp", "--numeric", "--all").stdout.splitlines()
        (socket,) = (line.split()[3] for line in held)
        assert re.fullmatch(r"\*%if\d{6,}:5353", socket)
        unix = lab.host.run("ss", "-H", "--unix", "--listening", "--processes").stdout.splitlines()
        assert [line.split()[4] for line in unix if f"pid={watcher.pid}," in line] == [
            f"{ctrport.state}/watch.sock"
        ]


@contextlib.contextmanager
def limited(ctrport: Cli, kept: list[str]) -> Iterator[Path]:
    """Give the log of a watcher that has these capabilities and cannot get others."""
    log = ctrport.directory / "watch.log"
    bounding = ",".join(["-all", *(f"+{name}" for name in kept)])
    prefix = ("setpriv", "--no-new-privs", "--inh-caps", "-all", "--bounding-set", bounding)
    with log.open("ab") as file:
        argv = (*prefix, *ctrport.argv("watch"))
        process = ctrport.containerd.lab.host.popen(*argv, env=ctrport.environment, stdout=file, stderr=file)
    try:
        until(
            lambda: "watching containerd" in log.read_text() or process.poll() is not None,
            within=30,
            what="a watcher, or its end",
        )
        yield log
    finally:
        process.terminate()
        process.wait(15)


def everything_needed(ctrport: Cli, lab: Lab, kept: list[str]) -> list[str]:
    """Use all that the daemon has rights for; gives what went wrong, in the words of the log and of `run`."""
    lab.host.run("iptables-legacy", "-P", "FORWARD", "DROP")
    try:
        with limited(ctrport, kept) as log:
            name = ctrport.containerd.unique("web")
            run = ctrport("run", "-d", "--name", name, "-p", "80:80", "-p", "8080:80", ctrport.containerd.image)
            if run.returncode == 0:
                with contextlib.suppress(AssertionError):
                    until(lambda: http_get(lab.remote, HOST, 80) == PAGE, within=3, what="the page")
            said = [line for line in log.read_text().splitlines() if " WARNING " in line or " ERROR " in line]
            ctrport("rm", "-f", name)
            return [*said, *([run.stderr] if run.returncode else []), *_tail(log)]
    finally:
        lab.host.run("iptables-legacy", "-P", "FORWARD", "ACCEPT")
        lab.host.run("iptables-legacy", "-F", check=False)


def _tail(log: Path) -> list[str]:
    text = log.read_text()
    return [] if "watching containerd" in text else [text[-1000:]]


def test_the_capabilities_of_the_unit_are_enough(ctrport: Cli, lab: Lab):
    """Networks, rules, iptables-legacy, settings and privileged ports, with the unit's capabilities alone."""
    assert everything_needed(ctrport, lab, CAPABILITIES) == []


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("net_admin", "CAP_NET_ADMIN"),
        ("net_raw", "iptables"),
        ("sys_admin", "CAP_SYS_ADMIN"),
        ("net_bind_service", "not held against other programs: 80/tcp: Permission denied"),
    ],
)
def test_each_capability_of_the_unit_is_needed(ctrport: Cli, lab: Lab, without: str, said: str):
    """Without any one of them something fails, and is told."""
    assert without in CAPABILITIES
    found = everything_needed(ctrport, lab, [name for name in CAPABILITIES if name != without])
    assert any(said in text for text in found), found


def test_no_other_capability_is_in_the_unit():
    """The two tests above are about all that the unit has."""
    assert sorted(CAPABILITIES) == ["net_admin", "net_bind_service", "net_raw", "sys_admin"]
