"""`ctrport watch`: starts, ends, crashes, rivals, and what others do to the kernel meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.host import lock
from lab import REFUSED, Failure, http_get, serve, until

if TYPE_CHECKING:
    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"
SLEEP = ("sleep", "600")


def page(lab: Lab, port: int) -> str | Failure:
    return http_get(lab.remote, HOST, port)


def answers(lab: Lab, *ports: int, within: float = 5.0) -> None:
    for port in ports:
        until(lambda port=port: page(lab, port) == PAGE, within=within, what=f"the page at {port}")


def told(watcher: Watcher, since: int = 0) -> list[str]:
    """Give the watcher's lines without time and level."""
    return [line.split(maxsplit=3)[-1] for line in watcher.log[since:].splitlines()]


def states(ctrport: Cli, name: str) -> list[tuple[int | None, str, str]]:
    return [(m["host_port"], m["state"], m["reason"]) for m in ctrport.entry(name)["mappings"]]


def drift(ctrport: Cli) -> tuple[int, str]:
    result = ctrport("rules", "--diff")
    return result.returncode, result.stdout


def kill_task(ctrport: Cli, name: str) -> None:
    ctrport.containerd.ctr("tasks", "kill", "-s", "KILL", name)
    until(lambda: "STOPPED" in ctrport.containerd.ctr("tasks", "list"), what="the end of the task")


def test_ready_means_that_the_rules_are_there(ctrport: Cli, watcher: Watcher, lab: Lab):
    """After a kill -9 the rules stay; at READY of the next start they match what changed meanwhile."""
    with ctrport.container("-p", "8080:80") as dead, ctrport.container("-p", "8081:80"):
        answers(lab, 8080, 8081)
        watcher.kill()
        assert page(lab, 8080) == page(lab, 8081) == PAGE
        kill_task(ctrport, dead)
        ns = lab.container_like("plain", lab.bridge("br0", "198.51.100.1/24"), "198.51.100.2/24")
        ns.ip("route add default via 198.51.100.1")
        name = ctrport.containerd.unique("plain")
        options = ("--annotation", "ctrport.io/publish=8082:80", "--with-ns", f"network:{ns.path}")
        ctrport.containerd.ctr("run", "-d", *options, ctrport.containerd.image, name)
        assert page(lab, 8082) is REFUSED
        watcher.start()
        assert [page(lab, port) for port in (8080, 8081, 8082)] == [REFUSED, PAGE, PAGE]
        assert drift(ctrport) == (0, "")
        ctrport("rm", "-f", name, check=True)
        ns.close()


def test_a_first_start_on_an_empty_host(ctrport: Cli, watcher: Watcher, lab: Lab):
    """On a host without containers the watcher is ready with an empty table, and changes no setting."""
    assert watcher.notifications == ["READY=1\nSTATUS=watching"]
    assert drift(ctrport) == (0, "")
    assert lab.host.sysctl("net.ipv4.ip_forward") == "0"
    assert ctrport.json("ps", "-a") == {"version": 1, "containers": []}


def test_many_kills(ctrport: Cli, watcher: Watcher, lab: Lab):
    """A watcher killed with -9 at any moment of its start and work leaves what the next one can take over."""
    with ctrport.container("-p", "8080:80") as name:
        answers(lab, 8080)
        for step in range(6):
            watcher.kill()
            rival = ctrport.popen("watch", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.2 + 0.08 * step)
            rival.kill()
            rival.wait(5)
            assert page(lab, 8080) == PAGE
        watcher.start()
        assert page(lab, 8080) == PAGE
        assert drift(ctrport) == (0, "")
        assert states(ctrport, name) == [(8080, "active", "")]


def test_sigterm_leaves_the_rules(ctrport: Cli, watcher: Watcher, lab: Lab):
    """SIGTERM ends the watcher with exit code 0; rules and ports stay, and it says how to remove them."""
    with ctrport.container("-p", "8080:80"):
        answers(lab, 8080)
        rules = ctrport.everything()["rules"]
        assert watcher.terminate() == 0
        assert told(watcher)[-1] == "stopping; the rules stay: ctrport flush removes them"
        assert page(lab, 8080) == PAGE
        assert ctrport.everything()["rules"] == rules


def test_sighup_reads_everything_again(ctrport: Cli, watcher: Watcher, lab: Lab):
    """After somebody deleted an element, SIGHUP brings it back."""
    with ctrport.container("-p", "8080:80"):
        answers(lab, 8080)
        lab.host.nft("delete element inet ctrport published4 { tcp . 8080 }")
        watcher.signal(signal.SIGHUP)
        until(lambda: page(lab, 8080) == PAGE, what="the element")
        assert drift(ctrport) == (0, "")


def test_a_published_port_is_taken_while_the_watcher_runs(ctrport: Cli, watcher: Watcher, lab: Lab):
    """Another program's bind fails until the container or the watcher has ended; `ps` names who came first."""

    def bound() -> bool:
        try:
            lab.host.call(lambda: socket.create_server(("", 8080))).close()
        except OSError as error:
            assert error.errno == errno.EADDRINUSE  # noqa: PT017 - others are failures
            return False
        return True

    with ctrport.container("-p", "8080:80"):
        assert not bound()
        assert page(lab, 8080) == PAGE
        watcher.kill()
        assert bound()
        watcher.start()
        assert not bound()
    assert bound()
    with serve(lab.host, 8080) as server:
        result = ctrport("run", "-d", "-p", "8080:80", ctrport.containerd.image)
        assert result.returncode == 125
        assert f"(pid {server.pid})" in result.stderr


def test_a_second_watcher(ctrport: Cli, watcher: Watcher):
    """A second watcher is refused with the lock's name and what to look at; the first is not disturbed."""
    result = ctrport("watch", timeout=10)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"another ctrport watches already: it holds {ctrport.state}/lock" in result.stderr
    assert "one watcher a host" in result.stderr
    assert watcher.running
    assert ctrport("sync").stdout == "in sync: 0 changes\n"


def test_a_lock_that_is_let_go_soon(ctrport: Cli, watcher: Watcher, lab: Lab):
    """What a killed watcher was starting may have its lock for a moment: the next one waits for that."""
    with ctrport.container("-p", "8080:80"):
        watcher.kill()
        held = lock.try_acquire(ctrport.state, lock.WRITER)
        assert held is not None
        threading.Timer(1, lock.release, [held]).start()
        watcher.start()
        answers(lab, 8080)


def test_a_watcher_that_is_just_dying(ctrport: Cli, watcher: Watcher, lab: Lab):
    """A killed watcher may have its lock and its socket for a moment, and answers nobody: that refuses no other."""
    with ctrport.container("-p", "8080:80"):
        watcher.kill()
        held = lock.try_acquire(ctrport.state, lock.WRITER)
        assert held is not None
        dying = socket.socket(socket.AF_UNIX)
        (ctrport.state / "watch.sock").unlink()
        dying.bind(str(ctrport.state / "watch.sock"))
        dying.listen()

        def die() -> None:
            dying.close()
            lock.release(held)

        threading.Timer(1, die).start()
        watcher.start()
        answers(lab, 8080)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "alone"])
def test_two_runs_for_one_port(ctrport: Cli, lab: Lab, request: pytest.FixtureRequest, *, watched: bool):
    """Of two runs at once for one port exactly one wins; the other names the winner and leaves nothing."""
    if watched:
        request.getfixturevalue("watcher")
    for _ in range(2):
        names = [ctrport.containerd.unique(word) for word in ("one", "two")]
        rivals = [
            ctrport.popen(
                *("run", "-d", "--name", name, "-p", "8080:80", ctrport.containerd.image),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in names
        ]
        ends = [(*rival.communicate(timeout=30), rival.returncode) for rival in rivals]
        assert sorted(code for _, _, code in ends) == [0, 125], ends
        winner = names[[code for _, _, code in ends].index(0)]
        loser_said = next(said for _, said, code in ends if code == 125)
        assert f"8080/tcp is held by container default/{winner}" in loser_said
        answers(lab, 8080)
        left = ctrport.everything()
        assert left["containers"] == [f"default: container {winner}", f"default: task {winner}"]
        assert len(left["namespaces"]) == 1
        assert [f for f in left["files"] if "leases/" in f] == [
            f"root/networks/default/leases/{ctrport.entry(winner)['addresses'][0]}"
        ]
        ctrport("rm", "-f", winner, check=True)


@pytest.mark.parametrize(("watched", "number"), [(True, 20), (False, 5)], ids=["watched", "alone"])
def test_parallel_runs(ctrport: Cli, lab: Lab, request: pytest.FixtureRequest, *, watched: bool, number: int):
    """Runs at the same time get addresses of their own, and all answer."""
    if watched:
        request.getfixturevalue("watcher")
    names = [ctrport.containerd.unique("many") for _ in range(number)]
    runs = [
        ctrport.popen(
            *("run", "-d", "--name", name, "-p", f"{8000 + n}:80", ctrport.containerd.image),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n, name in enumerate(names)
    ]
    ends = [(each.communicate(timeout=60)[0], each.returncode) for each in runs]
    assert [code for _, code in ends] == [0] * number, ends
    answers(lab, *range(8000, 8000 + number))
    entries = ctrport.json("ps")["containers"]
    assert {entry["id"] for entry in entries} == set(names)
    assert len({address for entry in entries for address in entry["addresses"]}) == 2 * number
    assert drift(ctrport) == (0, "")
    ctrport("rm", "-f", *names, check=True)
    assert ctrport.everything()["namespaces"] == []


def test_the_log(ctrport: Cli, watcher: Watcher):
    """The log has one line for each mapping that is published and unpublished, and no more."""
    watcher_lines = len(watcher.log)
    with ctrport.container("-p", "8080:80", "-p", "127.0.0.1:5353:53/udp", command=SLEEP) as name:
        both = " and ".join(ctrport.entry(name)["addresses"])
        ipv4 = ctrport.entry(name)["addresses"][0]
    lines = [line for line in told(watcher, watcher_lines) if "published" in line.split()[0]]
    mappings = (f"8080/tcp -> {both} port 80", f"127.0.0.1:5353/udp -> {ipv4} port 53")
    assert sorted(lines) == sorted(
        f"{change} default/{name} {mapping}" for change in ("published", "unpublished") for mapping in mappings
    )


def plain(ctrport: Cli, lab: Lab, word: str, publish: str, number: int) -> str:
    """Start a container with plain ctr on somebody else's bridge."""
    if "br0" not in lab.host.run("ip", "-o", "link").stdout:
        lab.bridge("br0", "198.51.100.1/24")
    ns = lab.container_like(word, "br0", f"198.51.100.{number}/24", gateway4="198.51.100.1")
    name = ctrport.containerd.unique(word)
    options = ("--annotation", f"ctrport.io/publish={publish}", "--with-ns", f"network:{ns.path}")
    ctrport.containerd.ctr("run", "-d", *options, ctrport.containerd.image, name)
    return name


def test_a_malformed_annotation(ctrport: Cli, watcher: Watcher, lab: Lab):
    """What cannot be read is refused with container and spec in log and ps; all other ports are served."""
    with ctrport.container("-p", "8080:80"):
        answers(lab, 8080)
        specs = '8081:80,80800:80,x"}; flush ruleset,8082:80\x1b[2J'
        name = plain(ctrport, lab, "bad", specs, 2)
        answers(lab, 8081, 8080)
        refusals = [line for line in told(watcher) if line.startswith("refused")]
        quoted = ("80800:80", 'x"};', "flush", "ruleset", "8082:80\x1b[2J")
        assert [line.split(": ")[1] for line in refusals] == [f"port spec {spec!a}" for spec in quoted]
        assert all(line.startswith(f"refused default/{name}: ") for line in refusals)
        shown = ctrport("ps").stdout
        assert "0.0.0.0:8081->80/tcp" in shown
        for spec in quoted:
            assert f"refused: port spec {spec!a}: " in shown
        assert "\x1b" not in shown + watcher.log
        assert states(ctrport, name) == [(8081, "active", "")]
        ctrport("rm", "-f", name, check=True)


def test_the_loser_of_a_conflict(ctrport: Cli, watcher: Watcher, lab: Lab):
    """A later container that wants a taken port waits, named in ps with the holder, and gets it when it is free."""
    with ctrport.container("-p", "8080:80") as holder:
        answers(lab, 8080)
        mark = len(watcher.log)
        waiting = plain(ctrport, lab, "late", "8080:80, 8081:80", 2)
        answers(lab, 8081)
        reason = f"8080/tcp is held by container default/{holder}"
        expected = [(8080, "waiting", reason), (8081, "active", "")]
        assert states(ctrport, waiting) == expected
        assert f"8080->80/tcp: waiting, {reason}" in ctrport("ps").stdout
        assert ctrport("port", waiting).stdout == "80/tcp -> 0.0.0.0:8081\n"
        watcher.restart()
        assert states(ctrport, waiting) == expected
        assert states(ctrport, holder) == [(8080, "active", "")]
        lines = told(watcher, mark)
        assert lines.count(f"waiting default/{waiting}: 8080:80/tcp: {reason}") == 2  # one of each watcher
    until(lambda: states(ctrport, waiting)[0] == (8080, "active", ""), what="the promotion")
    answers(lab, 8080)
    assert told(watcher)[-1] == f"published default/{waiting} 8080/tcp -> 198.51.100.2 port 80"
    ctrport("rm", "-f", waiting, check=True)


def test_restart_of_containerd(ctrport: Cli, watcher: Watcher, lab: Lab):
    """While containerd is away mappings stay; when it is back, what changed meanwhile is taken in."""
    with ctrport.container("-p", "8080:80"), ctrport.container("-p", "8081:80") as dead:
        answers(lab, 8080, 8081)
        pid = next(
            line.split()[1]
            for line in ctrport.containerd.ctr("tasks", "list").splitlines()
            if line.startswith(dead)
        )
        ctrport.containerd.kill()
        until(lambda: "no events from containerd" in watcher.log, what="the watcher's words")
        assert page(lab, 8080) == PAGE
        result = ctrport("run", "-d", "-p", "8082:80", ctrport.containerd.image)  # which asks through the watcher
        assert result.returncode == 125
        assert f"cannot ask for the version: no containerd at {ctrport.containerd.address}" in result.stderr
        assert "is containerd running?" in result.stderr
        os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.5)
        assert page(lab, 8080) == PAGE
        ctrport.containerd.start()
        until(lambda: ctrport.entry(dead)["mappings"] == [], within=15, what="the resync")
        assert (page(lab, 8080), page(lab, 8081)) == (PAGE, REFUSED)
        with ctrport.container("-p", "8082:80"):
            answers(lab, 8082)
        assert drift(ctrport) == (0, "")


def test_sync_and_rules(ctrport: Cli, lab: Lab):
    """Without a watcher, which would put all right by itself: `rules --diff` says what differs, `sync` mends it."""
    with ctrport.container("-p", "8080:80") as name:
        answers(lab, 8080)
        assert drift(ctrport) == (0, "")
        rules = ctrport.everything()["rules"]
        lab.host.nft(
            "delete element inet ctrport published4 { tcp . 8080 }\n"
            "add element inet ctrport published4 { tcp . 9999 : 192.0.2.7 . 80 }\n"
        )
        ipv4 = ctrport.entry(name)["addresses"][0]
        code, shown = drift(ctrport)
        assert (code, shown.splitlines()) == (
            1,
            [
                f'- published4: tcp . 8080 comment "default/{name}" : {ipv4} . 80',
                "+ published4: tcp . 9999 : 192.0.2.7 . 80",
            ],
        )
        assert ctrport.json("ps")["containers"][0]["id"] == name
        found = ctrport("rules", "--diff", "--format", "json")
        assert found.returncode == 1
        assert ctrport("sync").returncode == 0
        assert drift(ctrport) == (0, "")
        assert ctrport.everything()["rules"] == rules
        lab.host.nft("delete rule inet ctrport guard handle " + guard_drop(lab))
        code, shown = drift(ctrport)
        assert (code, shown) == (1, "- chain guard: rule 'unpublished port'\n")
        ctrport("sync", check=True)
        assert (drift(ctrport), ctrport.everything()["rules"]) == ((0, ""), rules)
        lab.host.nft("flush ruleset")
        assert page(lab, 8080) is REFUSED
        assert drift(ctrport) == (1, "- table inet ctrport\n")
        ctrport("sync", check=True)
        assert (page(lab, 8080), ctrport.everything()["rules"]) == (PAGE, rules)


def guard_drop(lab: Lab) -> str:
    """Give the handle of the rule that drops what is not published."""
    listing = lab.host.run("nft", "-a", "list", "chain", "inet", "ctrport", "guard").stdout
    return next(line.split("# handle ")[1] for line in listing.splitlines() if "unpublished port" in line)


def test_rules_can_be_loaded(ctrport: Cli, watcher: Watcher, lab: Lab):
    """What `rules` prints is a script that nft takes, and makes the table that is in the kernel."""
    assert watcher.running
    with ctrport.container("-p", "8080:80", "-p", "127.0.0.1:5353:53/udp"):
        script = ctrport("rules", check=True).stdout
        kernel = lab.host.run("nft", "--stateless", "list", "table", "inet", "ctrport").stdout
        with lab.netns("other") as other:
            other.nft(script)
            assert other.run("nft", "--stateless", "list", "ruleset").stdout == kernel


def test_flush(ctrport: Cli, lab: Lab):
    """`flush` is refused beside a watcher; alone it leaves the kernel as before; sync brings all back."""
    from program import Watcher  # noqa: PLC0415

    def kernel() -> dict[str, Any]:
        # Without what the kernel sets for each interface that comes.
        settings = lab.host.run("sysctl", "-a", "-e").stdout.splitlines()
        own = [
            s
            for s in settings
            if s.startswith("net.ip") and ".eth0." not in s and not s.startswith("net.ipv6.route")
        ]
        own += [s for s in settings if ".eth0." in s]
        seen = ctrport.everything()
        return {
            "rules": seen["rules"],
            "iptables": lab.host.run("iptables-save").stdout.splitlines()[1:-1],
            "links": seen["links"],
            "settings": own,
            "routes": lab.host.run("ip", "route").stdout + lab.host.run("ip", "-6", "route").stdout,
        }

    before = kernel()
    watcher = Watcher(ctrport)
    watcher.start()
    with ctrport.container("-p", "8080:80") as name:
        answers(lab, 8080)
        rules = ctrport.everything()
        refused = ctrport("flush")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "a watcher runs and would bring everything back" in refused.stderr
        assert page(lab, 8080) == PAGE
        watcher.terminate()
        flushed = ctrport("flush", check=True).stdout.splitlines()
        assert [line.split()[:2] for line in flushed][:4] == [
            ["removed", "table"],
            ["removed", "table"],  # the operator's, which is empty
            ["removed", "interface"],
            ["removed", "interface"],
        ]
        assert kernel() == before
        assert page(lab, 8080) is REFUSED
        assert ctrport("flush").stdout == "nothing of ctrport was there\n"
        shown = ctrport.entry(name)["mappings"][0]
        assert (shown["state"] == "active", shown["reason"] == "") == (False, False)
        ctrport("sync", check=True)
        answers(lab, 8080)
        assert ctrport.everything() == rules
        ctrport("flush", check=True)
        watcher.start()
        answers(lab, 8080)
        watcher.terminate()
    assert ctrport("flush").returncode == 0
    assert kernel() == before


def test_after_a_reboot(ctrport: Cli, watcher: Watcher, lab: Lab):
    """After a reboot (no rules, links, namespaces) a container with a restart policy comes back whole."""
    with ctrport.container("--restart", "always", "-p", "8080:80") as name:
        answers(lab, 8080)
        addresses = ctrport.entry(name)["addresses"]
        netns = ctrport.entry(name)["netns"]
        watcher.kill()
        ctrport.containerd.kill()
        for shim in list(ctrport.containerd._shims()):
            os.kill(shim.pid, signal.SIGKILL)
            ctrport.containerd._runc_delete(shim.namespace, shim.container)
        until(lambda: not list(ctrport.containerd._shims()), what="the end of the shims")
        subprocess.run(["umount", "--lazy", netns], check=True, timeout=10)
        lab.reset_host()
        for path in ctrport.state.iterdir():
            path.unlink()
        ctrport.containerd.start()
        watcher.start()
        answers(lab, 8080, within=20)
        assert ctrport.entry(name)["addresses"] == addresses
        assert drift(ctrport) == (0, "")
