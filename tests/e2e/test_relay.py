"""The relay of [::1] as a user meets it: switched on by the configuration, and there as long as the watcher is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import REFUSED, RESET, connect, exchange, http_get, until

if TYPE_CHECKING:
    from lab import Failure, Lab
    from program import Cli, Watcher

PAGE = "It works!\n"


@pytest.fixture
def relaying(ctrport: Cli, watcher: Watcher) -> Watcher:
    """Give a watcher that relays."""
    ctrport.config.write_text("relay_ipv6_loopback = true\n")
    watcher.restart()
    return watcher


def page(lab: Lab, port: int, address: str = "::1") -> str | Failure:
    return http_get(lab.host, address, port)


def test_switched_on_by_the_configuration(ctrport: Cli, relaying: Watcher, lab: Lab):
    """`localhost` answers whichever address it is tried by; no command takes the relay for a foreign listener."""
    with ctrport.container("-p", "8080:80") as one, ctrport.container("-p", "[::1]:8081:80") as other:
        assert [page(lab, 8080), page(lab, 8081)] == [PAGE] * 2
        assert page(lab, 8080, "127.0.0.1") == PAGE
        assert page(lab, 8081, "127.0.0.1") is REFUSED
        assert "[::1]:8081->80/tcp" in ctrport("ps", check=True).stdout
        with ctrport.container("-p", "8080-8085:80") as third:
            ports = {n: [m["host_port"] for m in ctrport.entry(n)["mappings"]] for n in (one, other, third)}
            assert ports == {one: [8080], other: [8081], third: [8082]}
            difference = ctrport("rules", "--diff")
            assert (difference.returncode, difference.stdout) == (0, "")
        ctrport("sync", check=True)
        assert [page(lab, port) for port in (8080, 8081, 8082)] == [PAGE, PAGE, REFUSED]
        assert "another program" not in relaying.log
    assert [page(lab, 8080), page(lab, 8081)] == [REFUSED] * 2
    assert lab.host.run("ss", "-Hlt").stdout == ""


def test_it_lives_as_long_as_the_watcher(ctrport: Cli, relaying: Watcher, lab: Lab):
    """Killed with a connection open: refused at once, and no [::1] is given out; the next watcher relays again."""
    with ctrport.container("-p", "8080:80") as name, ctrport.container("-p", "[::1]:8081:80") as other:
        with connect(lab.host, "::1", 8080) as opened:
            opened.socket.sendall(b"GET / HTTP/1.0\r\n")
            relaying.kill()
            until(lambda: exchange(lab.host, "::1", 8080, b"") is REFUSED)
        assert page(lab, 8080, "127.0.0.1") == PAGE
        failed = ctrport("run", "-d", "-p", "[::1]:8082:80", ctrport.containerd.image)
        assert failed.returncode == 125
        assert "a watcher relays tcp where relay_ipv6_loopback is true" in failed.stderr
        assert [m["state"] for m in ctrport.entry(other)["mappings"]] == ["refused"]
        relaying.start()
        assert [page(lab, 8080), page(lab, 8081)] == [PAGE] * 2
        assert [m["state"] for m in ctrport.entry(other)["mappings"]] == ["active"]
        ctrport("stop", name, check=True)
        assert page(lab, 8080) in (REFUSED, RESET)
        until(lambda: page(lab, 8080) is REFUSED)


def test_a_pipe_into_redis(ctrport: Cli, relaying: Watcher, lab: Lab):
    """Ten thousand commands, and the answers to all of them."""
    with ctrport.container("-p", "6379:6379", image=ctrport.containerd.redis_image):
        until(lambda: exchange(lab.host, "::1", 6379, b"PING\r\n") == b"+PONG\r\n")
        commands = "".join(f"SET key{n} {n}\r\n" for n in range(10000))
        said = lab.host.run("redis-cli", "-h", "::1", "--pipe", input=commands).stdout
        assert said.splitlines()[-1] == "errors: 0, replies: 10000"
    assert relaying.running
