"""Who else translates ports of this host: CNI portmap, Docker, netavark, kube-proxy, an operator's own rules.

Every nat chain at one hook sees a new connection until one of them translates it: first come, first served. So a
port that somebody else translates is his, as if he listened on it. His rules are read by his own programs
(`programs`): iptables-save for tables of iptables, `nft -j` for those of nftables, and these one by one, each only
if it has a nat chain at prerouting. Ours is never read so.
"""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ctrport.errors import CtrportError
from ctrport.firewall import ruleset
from ctrport.firewall.foreign import iptables, nat_json, nat_text, programs
from ctrport.firewall.foreign.iptables import LEGACY, NFT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from ctrport.firewall.generation import Generation
    from ctrport.model.bindings import IPAddress, Listener

T = TypeVar("T")
log = logging.getLogger(__name__)
VERSIONS = {"ip": 4, "ip6": 6}
DSTNAT = -100
SLOW = 0.2  # seconds: 500 services of kube-proxy with iptables; most hosts take 20 ms
REST = 20  # times what a slow look took, until a refresh pays for another one
INCOMPATIBLE = "is incompatible"  # iptables-nft-save's word for a table that nft has written to


class Translations:
    """What a writer remembers of them between its passes: they are read again when somebody has changed rules."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._seen: object = None
        self.found: tuple[Listener, ...] = ()
        self._told: list[str] = []
        self._rests_until = 0.0

    def read(self, addresses: Collection[IPAddress], *, full: bool = False) -> tuple[Listener, ...]:
        """Give them, for this host's addresses. A full look does not trust the sizes of legacy's tables.

        Where rules are many and a look is slow, others than full looks may give what was found shortly before.
        """
        now = (self._generation.foreign(), frozenset(addresses))
        begun = time.monotonic()
        is_due = full or begun >= self._rests_until
        if (now != self._seen and is_due) or (full and iptables.legacy_families("nat")):
            failures: list[str] = []
            self.found = tuple(dict.fromkeys(read(addresses, failures)))
            self._seen = now
            ended = time.monotonic()
            self._rests_until = ended + REST * (ended - begun) if ended - begun > SLOW else 0.0
            for failure in failures:
                if failure not in self._told:
                    log.warning("cannot see all that others translate: %s", failure)
            self._told = failures
        return self.found


def read(addresses: Collection[IPAddress], failures: list[str]) -> Iterator[Listener]:
    """Give who translates which ports of this host; what cannot be read is told and does not count."""
    for look in (*_attempt(partial(_looks, addresses), failures), *_legacy_looks(addresses)):
        yield from _attempt(look, failures)


def _looks(addresses: Collection[IPAddress]) -> list[Callable[[], list[Listener]]]:
    """Give one look for each table of nf_tables that has a nat chain at prerouting."""
    found: dict[tuple[str, str], bool] = {}
    for item in json.loads(programs.run("nft", "-j", "list", "chains"))["nftables"]:
        chain = item.get("chain", {})
        if (chain.get("type"), chain.get("hook")) == ("nat", "prerouting") and chain["family"] in nat_json.FAMILIES:
            of_iptables = (chain["table"], chain["name"], chain["prio"]) == ("nat", "PREROUTING", DSTNAT)
            name = (chain["family"], chain["table"])
            found[name] = found.get(name, False) or (of_iptables and chain["family"] in VERSIONS)
    found.pop(tuple(ruleset.ADDRESS.split()), None)  # type: ignore[arg-type] # family and name
    return [
        partial(_iptables, NFT, family, addresses) if of_iptables else partial(_native, family, table, addresses)
        for (family, table), of_iptables in found.items()
    ]


def _legacy_looks(addresses: Collection[IPAddress]) -> list[Callable[[], list[Listener]]]:
    return [partial(_iptables, LEGACY, family, addresses) for family in iptables.legacy_families("nat")]


def _iptables(backend: str, family: str, addresses: Collection[IPAddress]) -> list[Listener]:
    program = iptables.program(backend, family) or iptables.own_name(backend, family)
    text = programs.run(f"{program}-save", "-t", "nat")
    if INCOMPATIBLE in text:
        return _native(family, "nat", addresses)
    name = f"{family}tables nat" if backend == NFT else f"{family}tables-legacy nat"
    return nat_text.translated(text, VERSIONS[family], name, addresses)


def _native(family: str, table: str, addresses: Collection[IPAddress]) -> list[Listener]:
    return nat_json.translated(json.loads(programs.run("nft", "-j", "list", "table", family, table)), addresses)


def _attempt(look: Callable[[], list[T]], failures: list[str]) -> list[T]:
    try:
        return look()
    except CtrportError as error:
        failures.append(error.message)
    except (ValueError, KeyError, TypeError) as error:  # another version's words
        failures.append(f"a listing cannot be read: {error!r}")
    return []
