"""All of other people's firewalls in turn: let our packets pass, tell what could not be mended, take all back.

Looking costs a process or two for each firewall that this host has, so it is done at full passes and when a
bridge or interface comes or goes, never for a single mapping.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING

from ctrport.errors import CtrportError
from ctrport.firewall.foreign import firewalld, hook, iptables, native
from ctrport.firewall.foreign.obstacle import Obstacle, Passage
from ctrport.firewall.foreign.trace import OURS
from ctrport.host import sysctl
from ctrport.network import proc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from ctrport.config import Config
    from ctrport.firewall.ruleset import Links

log = logging.getLogger(__name__)
DOCKER_BRIDGE = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}")  # Docker's own naming


class Firewalls:
    """What a writer remembers of them between its passes."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._links: Links | None = None
        self._told: list[Obstacle] = []
        self._at_work = threading.Lock()  # passes and repairs come from several threads

    def ensure_once(self, links: Links) -> None:
        """Do as `ensure` when bridges or interfaces are others than the last time; costs nothing otherwise."""
        if links != self._links:
            self.ensure(links)

    def ensure(self, links: Links) -> None:
        """Let what we forward pass; what still stands in its way is told once, and again after it was away."""
        with self._at_work:
            found = ensure(self._config, links, [])
            self._links = links
            self._tell(found)

    def mend(self, touched: Collection[str] | None) -> list[str]:
        """Do it again where somebody has touched these tables (None: anything); gives what had to be mended.

        Before the first `ensure` nothing is to be mended.
        """
        mended: list[str] = []
        with self._at_work:
            if self._links is not None:
                found = ensure(self._config, self._links, mended, touched)
                self._tell([*found, *(o for o in self._told if o not in found)] if touched is not None else found)
        return mended

    def _tell(self, found: list[Obstacle]) -> None:
        for obstacle in found:
            if obstacle not in self._told:
                log.warning("%s", obstacle)
        self._told = found


def passage(config: Config, links: Links) -> Passage:
    """Give what must pass. Bridges count before they are there: a full pass makes what is missing at its end."""
    names = {name for _, name in socket.if_nameindex()}
    return Passage(
        mark=config.mark,
        bridges=links.bridges - links.internal,
        internal=links.internal,
        endpoints=links.endpoints - links.internal,
        uplinks=frozenset(r.interface for r in proc.read().routes if not r.network.prefixlen),
        isolated=frozenset(name for name in names - links.bridges if DOCKER_BRIDGE.fullmatch(name)),
    )


def _zoned(wanted: Passage) -> frozenset[str]:
    """Give the bridges that firewalld must not judge by its default zone.

    A zone lets all pass that a bridge sends. An internal one needs that only where br_netfilter shows firewalld
    what its containers send each other, and our own table drops the rest.
    """
    bridged = any(sysctl.read(f"net/bridge/bridge-nf-call-{which}") == "1" for which in ("iptables", "ip6tables"))
    return wanted.bridges | wanted.internal if bridged else wanted.bridges


def ensure(
    config: Config, links: Links, mended: list[str] | None = None, touched: Collection[str] | None = None
) -> list[Obstacle]:
    """Let what we forward pass other people's firewalls; gives what still stands in its way.

    `touched` are the tables to look at ("ip filter"), LEGACY for all of iptables-legacy's; all there are if None.
    What had to be written is added to `mended`.
    """
    wanted = passage(config, links)
    if not wanted:
        return []
    found: list[Obstacle | None] = []
    step = partial(_attempt, found, mended=mended)
    # Its manager may change such a table all day (kube-proxy), or need the processor now (a reload of firewalld).
    is_managed = touched is not None and all(table.split()[-1] in native.MANAGED for table in touched)
    chains = [] if is_managed else _forward_chains(found)
    if touched is None or hook.ADDRESS in touched:
        step(f"table {hook.ADDRESS}", partial(hook.ensure, config.mark))
    if touched is None or any(table.endswith(" firewalld") for table in touched):
        step("firewalld", partial(firewalld.ensure, config.firewalld_zone, _zoned(wanted)))
    for chain in chains:
        if chain.is_handwritten and (touched is None or f"{chain.family} {chain.table}" in touched):
            if config.adjust_nftables:
                step(f"nftables chain {chain}", partial(native.ensure, chain, wanted))
            step(f"nftables chain {chain}", partial(native.look, chain, wanted))
    for table in iptables.filters(chains):
        name = iptables.LEGACY if table.backend == iptables.LEGACY else f"{table.family} filter"
        if touched is None or name in touched:
            step(str(table), partial(iptables.ensure, table, wanted))
    return [obstacle for obstacle in dict.fromkeys(found) if obstacle is not None]


def diagnose(config: Config, links: Links) -> list[Obstacle]:
    """Give what stands in the way of published ports, and change nothing."""
    wanted = passage(config, links)
    found: list[Obstacle | None] = []
    if wanted:
        _attempt(found, "firewalld", partial(firewalld.look, config.firewalld_zone, _zoned(wanted)))
        chains = _forward_chains(found)
        for chain in chains:
            if chain.is_handwritten:
                _attempt(found, f"nftables chain {chain}", partial(native.look, chain, wanted))
        for table in iptables.filters(chains):
            _attempt(found, str(table), partial(iptables.look, table, wanted))
    return [obstacle for obstacle in dict.fromkeys(found) if obstacle is not None]


def remove(config: Config, bridges: Collection[str]) -> list[str]:
    """Take every rule of ours out of other people's firewalls; gives a line for each. Errors come at the end."""
    done, failures = [], []
    for what, step in _removals(config, bridges):
        try:
            if step():
                done.append(what)
        except CtrportError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    there, gone = hook.remove()
    if there:
        kept = f"kept table {hook.ADDRESS}: it has rules of yours"
        done.append(f"removed table {hook.ADDRESS}" if gone else kept)
    return done


def _removals(config: Config, bridges: Collection[str]) -> Iterable[tuple[str, Callable[[], object]]]:
    zone = config.firewalld_zone
    yield f"removed our bridges from zone {zone} of firewalld", partial(firewalld.remove, zone, bridges)
    chains = native.forward_chains()
    for chain in chains:
        if chain.is_handwritten:
            yield f"removed our rules from nftables chain {chain}", partial(native.remove, chain)
    for table in iptables.filters(chains):
        yield f"removed chain {OURS} from {table}", partial(iptables.remove, table)


def _forward_chains(found: list[Obstacle | None]) -> list[native.BaseChain]:
    chains: list[native.BaseChain] = []
    _attempt(found, "nftables", lambda: chains.extend(native.forward_chains()))
    return chains


def _attempt(
    found: list[Obstacle | None], where: str, step: Callable[[], object], mended: list[str] | None = None
) -> None:
    """Take one step; what it finds or how it fails is an obstacle, and the next step is taken all the same.

    A step that gives True has written something.
    """
    try:
        result = step()
    except CtrportError as error:
        fix = (error.hint,) if error.hint else ("ctrport sync",)
        found.append(Obstacle(where=where, what=error.message, fix=fix, unread=True))
    except (ValueError, KeyError) as error:  # another version's words
        what = f"its listing cannot be read: {error!r}"
        found.append(Obstacle(where=where, what=what, fix=("ctrport sync",), unread=True))
    else:
        found.append(result if isinstance(result, Obstacle) else None)
        if result is True and mended is not None:
            mended.append(where)
