"""What goes wrong around a watcher: one generator and one line in a table for each fault.

Up to its `yield` a fault happens, while operations go on; after it, what a person or systemd would do is done. What
the watcher is to repair is not repaired here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from random import Random

    from soak.world import World

    Happen = Callable[[World, Random], AbstractContextManager[None]]

TABLE = "inet ctrport"


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """`hinders` says that operations may fail meanwhile, and rightly."""

    name: str
    weight: int
    happen: Happen
    hinders: bool = False


@contextlib.contextmanager
def watcher_killed(world: World, _rng: Random) -> Iterator[None]:
    world.watcher.kill()
    yield
    world.watcher.start(within=30)


@contextlib.contextmanager
def watcher_restarted(world: World, _rng: Random) -> Iterator[None]:
    world.watcher.terminate()
    yield
    world.watcher.start(within=30)


@contextlib.contextmanager
def watcher_killed_at_its_start(world: World, rng: Random) -> Iterator[None]:
    world.watcher.kill()
    rival = world.cli.popen("watch", stdout=-3, stderr=-3)
    time.sleep(rng.uniform(0.1, 1.0))
    rival.kill()
    rival.wait(10)
    yield
    world.watcher.start(within=30)


@contextlib.contextmanager
def asked_for_a_pass(world: World, rng: Random) -> Iterator[None]:
    for _ in range(rng.randrange(1, 20)):
        world.watcher.signal(signal.SIGHUP)
    yield


@contextlib.contextmanager
def containerd_restarted(world: World, _rng: Random) -> Iterator[None]:
    world.containerd.kill()
    world.containerd.start()
    yield


@contextlib.contextmanager
def containerd_away(world: World, _rng: Random) -> Iterator[None]:
    world.containerd.kill()
    yield
    world.containerd.start()


@contextlib.contextmanager
def socket_away(world: World, _rng: Random) -> Iterator[None]:
    """Who is connected stays so; who comes anew finds no containerd."""
    there = Path(world.containerd.address)
    hidden = there.with_name("hidden.sock")
    there.rename(hidden)
    yield
    hidden.rename(there)


@contextlib.contextmanager
def everything_flushed(world: World, _rng: Random) -> Iterator[None]:
    world.lab.host.nft("flush ruleset")
    yield


@contextlib.contextmanager
def nftables_conf_loaded(world: World, _rng: Random) -> Iterator[None]:
    """Debian's /etc/nftables.conf begins with `flush ruleset`, and has chains that accept."""
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority filter; }}\n" for hook in ("input", "forward", "output")
    )
    world.lab.host.nft(f"flush ruleset\ntable inet filter {{\n{chains}}}\n")
    yield
    world.lab.host.run("nft", "delete", "table", "inet", "filter", check=False)


@contextlib.contextmanager
def table_deleted(world: World, _rng: Random) -> Iterator[None]:
    world.lab.host.run("nft", "delete", "table", *TABLE.split(), check=False)
    yield


def _elements(world: World) -> list[tuple[str, str, str]]:
    """Give map, key and target of every translation, as nft writes them."""
    said = world.lab.host.run("nft", "-j", "list", "table", *TABLE.split(), check=False).stdout
    found = []
    for item in json.loads(said or '{"nftables": []}')["nftables"]:
        for key, value in item.get("map", {}).get("elem", ()):
            bare = key["elem"]["val"] if "elem" in key else key
            words = (" . ".join(map(str, each["concat"])) for each in (bare, value))
            found.append((item["map"]["name"], *words))
    return sorted(found)  # type: ignore[arg-type]


@contextlib.contextmanager
def element_deleted(world: World, rng: Random) -> Iterator[None]:
    number = rng.random()
    if elements := _elements(world):
        name, key, _ = elements[int(number * len(elements))]
        world.lab.host.run("nft", f"delete element {TABLE} {name} {{ {key} }}", check=False)
    yield


@contextlib.contextmanager
def element_changed(world: World, rng: Random) -> Iterator[None]:
    number = rng.random()
    if elements := _elements(world):
        name, key, value = elements[int(number * len(elements))]
        elsewhere = ("203.0.113.9" if name.endswith("4") else "2001:db8:f::9") + value[value.index(" . ") :]
        world.lab.host.run(
            *("nft", "-f", "-"),
            input=f"delete element {TABLE} {name} {{ {key} }}\n"
            f"add element {TABLE} {name} {{ {key} : {elsewhere} }}\n",
            check=False,
        )
    yield


@contextlib.contextmanager
def element_added(world: World, _rng: Random) -> Iterator[None]:
    script = f"add element {TABLE} published4 {{ tcp . 9999 : 203.0.113.9 . 80 }}\n"
    world.lab.host.run("nft", "-f", "-", input=script, check=False)
    yield


@contextlib.contextmanager
def rules_flushed(world: World, rng: Random) -> Iterator[None]:
    chain = rng.choice(("publish", "guard", "forward", "postrouting", "loopback"))
    world.lab.host.run("nft", "flush", "chain", *TABLE.split(), chain, check=False)
    yield


@contextlib.contextmanager
def iptables_flushed(world: World, _rng: Random) -> Iterator[None]:
    for words in (("-F",), ("-t", "nat", "-F")):
        world.lab.host.run("iptables", *words, check=False)
        world.lab.host.run("ip6tables", *words, check=False)
    yield


@contextlib.contextmanager
def forward_drops(world: World, _rng: Random) -> Iterator[None]:
    for program in ("iptables", "ip6tables"):
        world.lab.host.run(program, "-P", "FORWARD", "DROP", check=False)
    yield


@contextlib.contextmanager
def forward_accepts(world: World, _rng: Random) -> Iterator[None]:
    for program in ("iptables", "ip6tables"):
        world.lab.host.run(program, "-P", "FORWARD", "ACCEPT", check=False)
    yield


@contextlib.contextmanager
def forwarding_off(world: World, _rng: Random) -> Iterator[None]:
    world.lab.host.sysctl("net.ipv4.ip_forward", 0)
    world.lab.host.sysctl("net.ipv6.conf.all.forwarding", 0)
    yield


@contextlib.contextmanager
def shim_hangs(world: World, rng: Random) -> Iterator[None]:
    shims = sorted(world.containerd._shims(), key=lambda shim: (shim.namespace, shim.container))
    number = rng.random()
    if not shims:
        yield
        return
    pid = shims[int(number * len(shims))].pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    yield


@contextlib.contextmanager
def state_full(world: World, _rng: Random) -> Iterator[None]:
    filler = world.cli.state / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


FAULTS = (
    Fault("watcher killed with -9", 4, watcher_killed, hinders=True),
    Fault("watcher killed at its start", 2, watcher_killed_at_its_start, hinders=True),
    Fault("watcher restarted", 2, watcher_restarted, hinders=True),
    Fault("SIGHUPs", 2, asked_for_a_pass),
    Fault("containerd killed and started", 2, containerd_restarted, hinders=True),
    Fault("containerd away", 2, containerd_away, hinders=True),
    Fault("containerd's socket away", 2, socket_away, hinders=True),
    Fault("nft flush ruleset", 4, everything_flushed),
    Fault("an nftables.conf loaded", 3, nftables_conf_loaded),
    Fault("our table deleted", 4, table_deleted),
    Fault("an element deleted", 4, element_deleted),
    Fault("an element changed", 4, element_changed),
    Fault("an element added", 3, element_added),
    Fault("a chain of ours flushed", 3, rules_flushed),
    Fault("iptables -F, -t nat -F", 3, iptables_flushed),
    Fault("FORWARD policy DROP", 3, forward_drops),
    Fault("FORWARD policy ACCEPT", 2, forward_accepts),
    Fault("forwarding switched off", 3, forwarding_off),
    Fault("a shim stopped for a second", 3, shim_hangs, hinders=True),
    Fault("state directory full", 3, state_full, hinders=True),
)
