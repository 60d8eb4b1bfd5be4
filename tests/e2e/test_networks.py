"""`ctrport network` and `run --network NAME`: real containers on several networks."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from lab import REFUSED, TIMEOUT, UNREACHABLE, ask, http_get, serve, until

if TYPE_CHECKING:
    from lab import Lab, Netns
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"
SLEEP = ("sleep", "600")


def answers(ns: Netns, address: str, port: int) -> None:
    until(lambda: http_get(ns, address, port) == PAGE, within=15, what=f"the page at {address}:{port}")


def test_the_life_of_a_network(program: Cli, lab: Lab):
    """It is printed by create, shown by ls and inspect; a container has its addresses there; rm needs it empty."""
    before = program.everything()
    options = (
        "--subnet",
        "10.9.0.0/24",
        "--gateway",
        "10.9.0.254",
        "--ipv6-subnet",
        "fd00:9::/64",
        "--mtu",
        "1400",
    )
    assert program("network", "create", "back", *options).stdout == "back\n"
    back = {
        "name": "back",
        "bridge": "cp-back",
        "ipv4": "10.9.0.0/24",
        "gateway4": "10.9.0.254",
        "ipv6": "fd00:9::/64",
        "gateway6": "fd00:9::fe",
        "mtu": 1400,
        "internal": False,
        "isolate": False,
        "containers": [],
    }
    assert program.json("network", "ls") == {"version": 1, "networks": [back]}
    with program.container("--network", "back", "--ip", "10.9.0.7", "-p", "8080:80") as name:
        answers(lab.remote, HOST, 8080)
        assert program.entry(name)["addresses"] == ["10.9.0.7", "fd00:9::7"]
        on_it = {"namespace": "default", "id": name, "ipv4": "10.9.0.7", "ipv6": "fd00:9::7"}
        assert program.json("network", "inspect", "back") == {
            "version": 1,
            "network": {**back, "containers": [on_it]},
        }
        lines = program("network", "inspect", "back").stdout
        assert f"default/{name} 10.9.0.7 fd00:9::7" in lines
        assert "10.9.0.0/24, gateway 10.9.0.254" in lines
        assert program("network", "ls").stdout.splitlines()[1].split() == [
            *("back", "cp-back", "10.9.0.0/24", "fd00:9::/64", "1"),
        ]
        assert program.execute(name, "cat", "/sys/class/net/eth0/mtu") == "1400\n"
        program("stop", "-t", "0", name, check=True)
        refused = program("network", "rm", "back")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"network back is in use by default/{name}" in refused.stderr
        assert f"ctrport rm -f {name}" in refused.stderr
    assert program("rules", "--diff").returncode == 0
    assert program("network", "rm", "back").stdout == "back\n"
    assert program("rules", "--diff").stdout == ""
    assert program.json("network", "ls")["networks"] == []
    after = program.everything()
    table = {"rules": [], "files": []}  # the table, and the record of it, stay until flush
    assert {**after, **table} == {**before, **table}
    assert [name for name in after["files"] if name.startswith("root/")] == []
    again = program("network", "rm", "back")
    assert (again.returncode, "no network named 'back'" in again.stderr) == (1, True)


def test_networks_are_kept_apart(program: Cli, lab: Lab):
    """Containers of two networks reach each other's published ports and nothing else; each the outside."""
    for name in ("one", "two"):
        program("network", "create", name, check=True)
    with (
        program.container("--network", "one", "-p", "8080:80") as web,
        program.container("--network", "two", "-p", "8081:80", word="other") as other,
        program.container("--network", "one", word="sibling", command=SLEEP) as sibling,
    ):
        answers(lab.remote, HOST, 8080)
        answers(lab.remote, HOST, 8081)
        own = {name: program.entry(name)["addresses"] for name in (web, other)}
        there = program.inside(other)
        gateway = program.json("network", "inspect", "two")["network"]["gateway4"]
        for address in (HOST, gateway):
            assert http_get(there, address, 8080) == PAGE
        assert http_get(program.inside(web), HOST, 8081) == PAGE
        assert http_get(there, HOST, 80) is REFUSED
        for address in own[web]:
            assert http_get(there, address, 80, timeout=0.5) is TIMEOUT
            assert http_get(program.inside(sibling), address, 80) == PAGE
        for address in own[other]:
            assert http_get(program.inside(web), address, 80, timeout=0.5) is TIMEOUT
        with serve(lab.remote, 7000):
            for name in (web, other):
                answer = ask(program.inside(name), "192.0.2.2", 7000)
                assert answer.peer[0] == HOST  # type: ignore[union-attr]


def test_an_isolated_network(ctrport: Cli, watcher: Watcher, lab: Lab):
    """Siblings reach the published port and nothing else, with and without bridged frames at the IP hooks."""
    ctrport("network", "create", "apart", "--isolate", check=True)
    with (
        ctrport.container("--network", "apart", "-p", "8080:80") as web,
        ctrport.container("--network", "apart", word="sibling", command=SLEEP) as sibling,
    ):
        answers(lab.remote, HOST, 8080)
        inside, addresses = ctrport.inside(sibling), ctrport.entry(web)["addresses"]
        for value in (0, 1, 0):
            for which in ("iptables", "ip6tables"):
                lab.host.sysctl(f"net/bridge/bridge-nf-call-{which}", value)
            ctrport("sync", check=True)
            assert [http_get(inside, HOST, 8080), http_get(inside, "2001:db8::1", 8080)] == [PAGE, PAGE]
            for address in addresses:
                assert http_get(inside, address, 80, timeout=0.5) in (TIMEOUT, UNREACHABLE)
    assert watcher.running


def test_an_internal_network(program: Cli, lab: Lab):
    """Siblings and the host reach a container there; -p is told to do nothing; nothing else leads in or out."""
    program("network", "create", "inside", "--internal", "--no-ipv6", check=True)
    name = program.containerd.unique("web")
    run = ("run", "-d", "--name", name, "--network", "inside", "-p", "8080:80", program.containerd.image)
    result = program(*run, check=True)
    try:
        assert "-p does nothing on the network inside: it is internal" in result.stderr
        assert program.entry(name)["mappings"] == []
        (lease,) = program.json("network", "inspect", "inside")["network"]["containers"]
        answers(lab.host, lease["ipv4"], 80)
        assert http_get(lab.remote, HOST, 8080) is REFUSED
        with (
            program.container("--network", "inside", word="sibling", command=SLEEP) as sibling,
            serve(lab.remote, 7000),
        ):
            assert http_get(program.inside(sibling), lease["ipv4"], 80) == PAGE
            assert ask(program.inside(sibling), "192.0.2.2", 7000) is UNREACHABLE
            with program.container(word="plain", command=SLEEP) as plain:
                assert http_get(program.inside(plain), lease["ipv4"], 80, timeout=0.5) is TIMEOUT
    finally:
        program("rm", "-f", name)


def test_an_annotation_on_an_internal_network(ctrport: Cli, watcher: Watcher, lab: Lab):
    """What asks for ports there by another way is refused, with the reason in ps and in the log."""
    ctrport("network", "create", "inside", "--internal", check=True)
    options = ("--network", "inside", "--annotation", "ctrport.io/publish=8080:80")
    with ctrport.container(*options) as name:
        assert ctrport.entry(name)["mappings"] == []
        reason = "the container is on an internal network: its ports are not published"
        assert f"refused: {reason}" in ctrport("ps").stdout
        until(lambda: f"{name}: {reason}" in watcher.log, what="the line in the log")
        assert http_get(lab.remote, HOST, 8080) is REFUSED


def test_all_networks_come_back(ctrport: Cli, watcher: Watcher, lab: Lab):
    """After a foreign flush, and after one of ours, every network and its ports are there again."""
    for name in ("one", "two"):
        ctrport("network", "create", name, check=True)
    ports = {"default": 8080, "one": 8081, "two": 8082}
    with (
        ctrport.container("-p", "8080:80"),
        ctrport.container("--network", "one", "-p", "8081:80", word="w1"),
        ctrport.container("--network", "two", "-p", "8082:80", word="w2"),
    ):
        for port in ports.values():
            answers(lab.remote, HOST, port)
        lab.host.nft("flush ruleset")
        lab.host.ip("link delete cp-one", "link delete ctrport0")
        watcher.signal(signal.SIGHUP)
        for port in ports.values():
            answers(lab.remote, HOST, port)
        watcher.terminate()
        flushed = ctrport("flush", check=True).stdout
        assert all(f"removed interface {name}" in flushed for name in ("ctrport0", "cp-one", "cp-two"))
        assert http_get(lab.remote, HOST, 8081) is REFUSED
        watcher.start()
        for port in ports.values():
            answers(lab.remote, HOST, port)


def test_a_network_for_a_dry_run(ctrport: Cli):
    """The script has the network's bridge and an address of it; an unknown network is named."""
    ctrport("network", "create", "apart", "--isolate", "--subnet", "10.9.0.0/24", check=True)
    script = ctrport("run", "--dry-run", "--network", "apart", "-p", "8080:80", "redis", check=True).stdout
    assert "ctrport.io/network=apart" in script
    assert "10.9.0.2 . 80" in script
    assert '"cp-apart" . "cp-apart"' in script
    unknown = ctrport("run", "--dry-run", "--network", "nowhere", "redis")
    assert (unknown.returncode, "no network named 'nowhere'" in unknown.stderr) == (1, True)


@pytest.mark.parametrize(
    ("code", "said", "arguments"),
    [
        (2, "--subnet 10.9.0.0/31 is too small", ("create", "x", "--subnet", "10.9.0.0/31")),
        (2, "the network name 'a/b'", ("create", "a/b")),
        (2, "cannot be named 'host'", ("create", "host")),
        (1, "overlaps this host's route to 192.0.2.0/24 on eth0", ("create", "x", "--subnet", "192.0.2.128/25")),
        (1, "a network named there exists already", ("create", "there")),
        (1, "overlaps network there", ("create", "x", "--subnet", "10.9.0.0/16")),
        (1, "no network named '../../root'", ("inspect", "../../root")),
        (1, "no network named '../networks/there'", ("rm", "../networks/there")),
    ],
)
def test_what_cannot_be_made(ctrport: Cli, code: int, said: str, arguments: tuple[str, ...]):
    """The error names the input, and nothing is made or removed."""
    ctrport("network", "create", "there", "--subnet", "10.9.0.0/24", check=True)
    before = ctrport.everything()
    result = ctrport("network", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert ctrport.everything() == before
    assert [n["name"] for n in ctrport.json("network", "ls")["networks"]] == ["there"]


def test_a_network_name_that_is_none(ctrport: Cli):
    """`run --network` with a path or a typing error is bad usage, before anything is made."""
    result = ctrport("run", "-d", "--network", "../default", ctrport.containerd.image)
    assert (result.returncode, "--network '../default'" in result.stderr) == (2, True)
