"""What others do to a host where the program runs, and how long a port is away for it.

Used by tests/kernel/test_healing.py and by tests/repair_times.py, which prints figures.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from typing import TYPE_CHECKING, Any

from contract import HOST
from lab import Answer, ask, connect, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from contract import ContractSite

    Attack = Callable[[ContractSite], object]

# Of an operator who has never heard of ctrport; written by hand, and loaded by `systemctl reload nftables`.
NFTABLES_CONF = """#!/usr/sbin/nft -f
flush ruleset
table inet operator {
    chain input {
        type filter hook input priority filter; policy accept;
        tcp dport 7001 drop
    }
}
"""


def handle_of(site: ContractSite, chain: str, comment: str) -> str:
    """Give the handle of a rule of ours."""
    listing = site.host.run("nft", "-a", "list", "chain", "inet", "ctrport", chain).stdout
    return next(line.split("# handle ")[1] for line in listing.splitlines() if comment in line)


def flush_ruleset(site: ContractSite) -> None:
    site.host.nft("flush ruleset")


def delete_table(site: ContractSite) -> None:
    site.host.nft("delete table inet ctrport")


def delete_element(site: ContractSite) -> None:
    site.host.nft("delete element inet ctrport published4 { tcp . 8080 }")


def change_element(site: ContractSite) -> None:
    site.host.nft(
        "delete element inet ctrport published4 { tcp . 8080 }\n"
        "add element inet ctrport published4 { tcp . 8080 : 198.51.100.99 . 80 }"
    )


def delete_rule(site: ContractSite) -> None:
    handle = handle_of(site, "publish", "on every IPv4 address")
    site.host.nft(f"delete rule inet ctrport publish handle {handle}")


def change_rule(site: ContractSite) -> None:
    handle = handle_of(site, "publish", "on every IPv4 address")
    site.host.nft(f'replace rule inet ctrport publish handle {handle} counter comment "on every IPv4 address"')


def flush_chain(site: ContractSite) -> None:
    site.host.nft("flush chain inet ctrport prerouting")


def make_dormant(site: ContractSite) -> None:
    site.host.nft("add table inet ctrport { flags dormant; }")


def load_nftables_conf(site: ContractSite) -> None:
    path = site.directory / "nftables.conf"
    path.write_text(NFTABLES_CONF)
    site.host.run("nft", "-f", path)


def flush_iptables(site: ContractSite) -> None:
    for table in ("filter", "nat"):
        site.host.run("iptables-nft", "-t", table, "-F")


ATTACKS: dict[str, Attack] = {
    "flush ruleset": flush_ruleset,
    "table deleted": delete_table,
    "element deleted": delete_element,
    "element changed": change_element,
    "rule deleted": delete_rule,
    "rule changed": change_rule,
    "chain flushed": flush_chain,
    "table dormant": make_dormant,
    "nftables.conf": load_nftables_conf,
}


def published(site: ContractSite, port: int = 8080, timeout: float = 0.2) -> bool:
    """Whether a port answers a machine on the wire."""
    return isinstance(ask(site.remote, HOST[4], port, timeout=timeout), Answer)


@contextlib.contextmanager
def talking(site: ContractSite) -> Iterator[None]:
    """Keep a connection to a published port open in the block, with data all the time; fail if it ends."""
    failures: list[OSError] = []
    count = 0
    ended = threading.Event()

    def talk() -> None:
        nonlocal count
        while not ended.wait(0.005):
            try:
                assert opened.echo(b"still there") == b"still there"
                count += 1
            except OSError as error:
                failures.append(error)
                return

    with connect(site.remote, HOST[4], 8080, timeout=10) as opened:
        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield
            so_far = count
            until(lambda: failures or count > so_far + 3, within=10, what="data on the open connection")
        finally:
            ended.set()
            thread.join()
    assert failures == [], f"{failures}\n{site.watcher.log}"


@contextlib.contextmanager
def probing(site: ContractSite, port: int = 8080) -> Iterator[list[float]]:
    """Ask a port for new connections in the block, without a pause; adds when each was answered."""
    answered: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        while not ended.is_set():
            if published(site, port, timeout=0.02):
                answered.append(time.monotonic())

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        until(lambda: answered, what="a first answer")
        yield answered
    finally:
        ended.set()
        thread.join()


def outage(site: ContractSite, attack: Attack, *, waits: bool = True) -> float:
    """Give the seconds from the last answer that came before an attack to the first one after its repair.

    Of an attack that need not hurt (`waits` is false), the longest time without an answer until 2 s after it.
    """
    with probing(site) as answered:
        time.sleep(0.05)
        mark = len(site.watcher.log)
        begun = answered[-1]
        attack(site)
        done = time.monotonic()
        if waits:
            until(lambda: "put right in" in site.watcher.log[mark:], within=30, every=0.005, what="a repair")
        else:
            time.sleep(2)
        until(lambda: answered[-1] > done, within=30, every=0.005, what="an answer")
        time.sleep(0.1)
    times = [moment for moment in answered if moment >= begun]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def counts(site: ContractSite) -> dict[str, int]:
    """Give the packets that each element of `published4` has counted."""
    document: dict[str, Any] = json.loads(
        site.host.run("nft", "-j", "list", "map", "inet", "ctrport", "published4").stdout
    )
    elements = next(item["map"] for item in document["nftables"] if "map" in item)["elem"]
    return {
        " ".join(map(str, element["elem"]["val"]["concat"])): element["elem"]["counter"]["packets"]
        for element, _ in elements
    }
