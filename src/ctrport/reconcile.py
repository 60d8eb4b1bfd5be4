"""From what containerd says to what the kernel does: one pass, over everything or over what changed.

Level-triggered. An event only names a container; the container is then read as it is now, but for what a start says
of itself and can be checked (docs/decisions/0016). `resync` reads all and compares the table with the kernel's;
`refresh` reads a few and applies their difference in one transaction. When a difference does not apply, the kernel
does not hold what we believe, and the table is replaced whole, in one transaction too.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from ctrport import journal
from ctrport.claims import Claims, incumbents, tell_listeners
from ctrport.firewall import ruleset
from ctrport.firewall.foreign.adjust import Firewalls
from ctrport.firewall.foreign.translations import Translations
from ctrport.firewall.kernel import KernelTable
from ctrport.firewall.ruleset import Links
from ctrport.host import facts, needs
from ctrport.model.bindings import State
from ctrport.model.ledger import Ledger
from ctrport.network import networks, proc
from ctrport.snapshot import NO_STARTS, Snapshot, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ctrport.config import Settings
    from ctrport.containerd.client import Client
    from ctrport.firewall.nft import Nft
    from ctrport.firewall.table import Elements, Listing, Table
    from ctrport.host.relay import Relay
    from ctrport.host.reservation import Reservation
    from ctrport.model.bindings import Binding, Change, Listener
    from ctrport.model.workload import Key, Start, Workload
    from ctrport.network.networks import Network

log = logging.getLogger(__name__)


class Reconciler:
    """The state of one writer. Its passes must not run at the same time as each other.

    A reservation and a relay, which only a writer that stays has a use for, are sockets for published ports.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        nft: Nft,
        reservation: Reservation | None = None,
        relay: Relay | None = None,
    ) -> None:
        self.settings = settings
        self.reserved: dict[Key, Workload] = {}  # by `run`, for containers that do not run yet
        self.snapshot = Snapshot(client, self.reserved.keys())
        self.snapshot.trust_labels = settings.config.policy.trust_labels
        self.ledger: Ledger | None = None
        self.host_settings = needs.HostSettings(settings)
        self.kernel = KernelTable(settings, nft)
        self._translations = Translations(self.kernel.generation)  # by others
        self._networks: list[Network] = []  # of ours, as of this pass
        self._towards: dict[Key, str] = {}  # by which interface containers with a port are reached
        self._overlaps: list[str] = []  # with them, as told
        self.firewalls = Firewalls(settings.config)  # of others
        self._claims = Claims(reservation, relay)
        self._believed = False  # whether the kernel holds it: not before the first pass, nor after a failure

    async def resync(self, *, apply: bool = True) -> list[Change]:
        """Read everything; make the kernel's table equal to what it should be, unless only looking."""
        doubted, self._believed = not self._believed, False
        await asyncio.to_thread(self._begin)
        await self.snapshot.read_all()
        changes = await asyncio.to_thread(self._settle, apply=apply, doubted=doubted)
        if apply:
            await self._claims.serve(self._bindings(), all_there_are=True)
            self._believed = True
            journal.log_changes(changes)
            assert self.ledger is not None  # noqa: S101 - made by `_settle`
            self._overlaps = journal.log_overlaps(self.ledger.overlaps(), self._overlaps)
        return changes

    async def review(self) -> list[Change]:
        """Look again at which ports others translate, and read no container unless a pass is due anyway."""
        if self.ledger is None or not self._believed:
            return []
        before = self._translations.found
        found = await asyncio.to_thread(self._translations.read, self.snapshot.routes.addresses)
        return await self.refresh((), reviewed=True) if found != before else []

    async def refresh(
        self, keys: Iterable[Key], starts: Mapping[Key, Start] = NO_STARTS, *, reviewed: bool = False
    ) -> list[Change]:
        """Read a few containers and apply what changed for them, or for whom others have `reviewed` ports."""
        if self.ledger is None or not self._believed:
            return await self.resync()
        self._believed = False  # until the kernel has what comes of it
        keys = tuple(keys)
        had_host_ports = any(w.host_ports for w in map(self.snapshot.workloads.get, keys) if w)
        answers = await self.snapshot.ask(keys, starts)
        # Turns of threads are what a pass costs most: this one, and that of `_apply`.
        disturbed, found = await asyncio.to_thread(lambda: (self._begin(), processes(answers)))
        if disturbed:
            log.warning("somebody has changed or removed our rules: making a full pass")
            return await self.resync()
        await self.snapshot.note(answers, found)
        self._put(keys)
        looked = any(key in self.snapshot.workloads or key in self.reserved for key in keys)
        others = (self._tell,) if looked or reviewed or had_host_ports else ()

        changes = await asyncio.to_thread(self._apply, keys, *others)
        await self._claims.serve(change.new for change in changes)
        self._believed = True
        journal.log_changes(changes)
        return changes

    def _settle(self, *, apply: bool, doubted: bool) -> list[Change]:
        """Let the ledger decide about everything that was read, and bring the kernel to it unless only looking."""
        listing = self._weigh()
        ledger = self.ledger
        assert ledger is not None  # noqa: S101 - made by `_weigh`
        changes = self._claims.settle(ledger, partial(self._tell, listeners=ledger.host.listeners, full=True))
        self._claims.retry(self._bindings())
        self._towards.clear()
        self._reach((*self.snapshot.workloads, *self.reserved))
        links = self._links()
        table = self.table(links)
        if listing is not None:  # a writer that has just started knows no more of those who do not answer
            owners = self.snapshot.uncertain - self.snapshot.workloads.keys()
            ruleset.carry_over(listing.elements, table.elements, owners)
        if not apply:
            self.kernel.elements = table.elements
            return changes
        self.host_settings.ensure(links, ipv6=_serves_ipv6(table.elements))
        self.firewalls.ensure(links)
        replaced = self.kernel.settle(table, listing)
        if doubted and not replaced:  # a pass may have ended between its rules and its flows, also a writer's
            self.kernel.forget_stale(None)
        return changes

    def _apply(self, keys: Iterable[Key], *before: Callable[[], None]) -> list[Change]:
        """Let the ledger decide about what was put into it, and bring the kernel what changed."""
        assert self.ledger is not None  # noqa: S101 - made by the first resync
        changes = self._claims.settle(self.ledger, *before)
        self._reach({*keys, *(binding.owner for change in changes for binding in change if binding)})
        links = self._links()
        transaction = self.kernel.difference(changes, links)
        self.host_settings.ensure_once(links, ipv6=_serves_ipv6(self.kernel.elements))
        self.kernel.commit(transaction)
        self.firewalls.ensure_once(links)  # last: it may take processes, and most hosts need none of it
        return changes

    def bindings(self, key: Key) -> tuple[Binding, ...]:
        """Give what became of a container's requests."""
        return self.ledger.bindings(key) if self.ledger else ()

    def configure(self, settings: Settings) -> None:
        """Take other settings; the full pass that must follow brings everything to them."""
        self.settings = settings
        self.firewalls = Firewalls(settings.config)
        self._believed = False
        self.snapshot.trust_labels = settings.config.policy.trust_labels
        if self.ledger is not None:
            self.ledger.set_policy(settings.config.policy)

    def _begin(self) -> bool:
        """Read what of this host a reading of containers needs; says whether somebody has changed our rules."""
        self.snapshot.routes = proc.read()
        self._networks = networks.load_all(self.settings.root)
        self.snapshot.internal = frozenset(n.bridge for n in self._networks if n.internal)
        return self.kernel.is_disturbed()

    def _weigh(self) -> Listing | None:
        """Put all that was read into the ledger; gives the table as the kernel has it."""
        listing = self.kernel.listing()
        host = facts.read(relays=self.settings.config.relay_ipv6_loopback)
        if self.ledger is None:
            self.ledger = Ledger(host, incumbents(listing), self.settings.config.policy)
        else:
            self.ledger.set_host(host)
        self._put({*self.snapshot.workloads, *self.reserved, *self.ledger.owners()})
        return listing

    def _tell(self, listeners: tuple[Listener, ...] | None = None, *, full: bool = False) -> None:
        """Tell the ledger who else has ports of this host, by listening or by translating."""
        assert self.ledger is not None  # noqa: S101 - made by the first resync
        translations = self._translations.read(self.snapshot.routes.addresses, full=full)
        tell_listeners(self.ledger, listeners, translations)

    def _put(self, keys: Iterable[Key]) -> None:
        """Put what was read into the ledger."""
        ledger = self.ledger
        assert ledger is not None  # noqa: S101 - made by the first resync
        for key in keys:
            workload = self.snapshot.workloads.get(key)
            if key in self.reserved and (workload is None or workload.endpoint is None):
                workload = self.reserved[key]
            if workload is None:
                ledger.remove(key)
            else:
                ledger.put(workload)

    def table(self, links: Links | None = None) -> Table:
        """Give the whole table as it should be, as of the last pass."""
        return ruleset.build(self._bindings(), links or self._links(), mark=self.settings.config.mark)

    def _bindings(self) -> list[Binding]:
        return [b for key in self.ledger.owners() for b in self.ledger.bindings(key)] if self.ledger else []

    def _serves(self, key: Key) -> bool:
        return any(binding.state is State.ACTIVE for binding in self.bindings(key))

    def _reach(self, keys: Iterable[Key]) -> None:
        """Take in by which interface some containers are reached, if they have a port."""
        for key in keys:
            self._towards.pop(key, None)
            workload = self.snapshot.workloads.get(key) or self.reserved.get(key)
            endpoint = workload.endpoint if workload is not None else None
            if endpoint is not None and endpoint.interface and self._serves(key):
                self._towards[key] = endpoint.interface

    def _links(self) -> Links:
        """Give the bridges of our networks, and the interfaces towards containers that have a port."""
        towards = set(self._towards.values())
        for name in {n for n in towards if not ruleset.can_name(n)}:
            log.warning("interface %a cannot be named in nftables: a container behind it cannot reach itself", name)
            towards.discard(name)
        bridges = frozenset(n.bridge for n in self._networks)
        return Links(
            bridges=bridges,
            internal=frozenset(n.bridge for n in self._networks if n.internal),
            isolated=frozenset(n.bridge for n in self._networks if n.isolate),
            endpoints=frozenset(towards) - bridges,  # so that nothing changes with the first container of a bridge
        )


def _serves_ipv6(elements: Elements) -> bool:
    return any(elements[name] for name in ruleset.IPV6_MAPS)
