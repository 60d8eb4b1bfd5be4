"""From what containerd says to what the kernel does: one pass, over everything or over what changed.

Level-triggered. An event only names a container; the container is then read as it is now. `resync` reads all of
them and compares the kernel's table element by element; `refresh` reads a few and applies their difference in
one transaction. When a difference does not apply, the kernel does not hold what we believe, and the table is
replaced whole, in one transaction too.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ctrport import journal
from ctrport.claims import Claims, incumbents, tell_listeners
from ctrport.errors import ContainerdError, NotFoundError
from ctrport.firewall import record, ruleset
from ctrport.firewall.foreign.adjust import Firewalls
from ctrport.firewall.foreign.translations import Translations
from ctrport.firewall.kernel import KernelTable
from ctrport.firewall.ruleset import Links
from ctrport.firewall.table import difference
from ctrport.host import facts, needs
from ctrport.model.annotations import FOREIGN_NAMESPACES, asks, is_auto_remove, read_workload
from ctrport.model.ledger import Ledger
from ctrport.model.workload import Endpoint, Key, Status
from ctrport.network import networks, proc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrport.config import Settings
    from ctrport.containerd.client import Client
    from ctrport.firewall.nft import Nft
    from ctrport.firewall.table import Table, Transaction
    from ctrport.host.relay import Relay
    from ctrport.host.reservation import Reservation
    from ctrport.model.bindings import Binding, Change
    from ctrport.model.workload import Container, Task, Workload

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Snapshot:
    """What the last passes saw: every container that asks for ports, and all others' names."""

    workloads: dict[Key, Workload] = field(default_factory=dict)
    exited_for_good: set[Key] = field(default_factory=set)  # `run -d --rm` whose task has ended
    uncertain: set[Key] = field(default_factory=set)  # to be looked at once more; see `_note`
    known: set[Key] = field(default_factory=set)  # every container of every namespace, as of the last resync


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
        self.snapshot = Snapshot()
        self.reserved: dict[Key, Workload] = {}  # by `run`, for containers that do not run yet
        self.ledger: Ledger | None = None
        self.host_settings = needs.HostSettings(settings)
        self._client = client
        self._kernel = KernelTable(settings, nft)
        self._translations = Translations(self._kernel.generation)  # by others
        self._overlaps: list[str] = []  # with them, as told
        self._firewalls = Firewalls(settings.config)  # of others
        self._claims = Claims(reservation, relay)
        self._believed = False  # whether the kernel holds it: not before the first pass, nor after a failure
        self._routes = proc.NetworkNamespace((), ())  # of this host, as of this pass
        self._internal: frozenset[str] = frozenset()  # bridges of internal networks, as of this pass

    async def resync(self, *, apply: bool = True) -> list[Change]:
        """Read everything; make the kernel's table equal to what it should be, unless only looking."""
        doubted, self._believed = not self._believed, False
        self._routes = await asyncio.to_thread(proc.read)
        await self._read_all()
        listing = await asyncio.to_thread(self._kernel.listing)
        host = await asyncio.to_thread(facts.read, relays=self.settings.config.relay_ipv6_loopback)
        if self.ledger is None:
            self.ledger = Ledger(host, incumbents(listing), self.settings.config.policy)
        else:
            self.ledger.set_host(host)
        self._put({*self.snapshot.workloads, *self.reserved, *self.ledger.owners()})
        translations = await asyncio.to_thread(self._translations.read, self._routes.addresses, full=True)
        await tell_listeners(self.ledger, host.listeners, translations)
        changes = await self._claims.settle(self.ledger)
        await self._claims.retry(self._bindings())
        links = self._links()
        table = self.table(links)
        self._kernel.elements = table.elements
        if apply:
            self.host_settings.ensure(links, ipv6=self._serves_ipv6())
            await asyncio.to_thread(self._firewalls.ensure, links)
            if record.intact(self.settings.state, table, listing):
                await self._commit(difference(listing.elements, table.elements, table.address) if listing else None)
                if doubted:  # a pass may have ended between its rules and its flows, here or in an earlier writer
                    await asyncio.to_thread(self._kernel.forget_stale, None)
            else:
                if listing is not None:
                    log.warning("the rules in %s are not the ones to be: replacing the table", table.address)
                await asyncio.to_thread(self._kernel.rebuild, table)
            await self._claims.serve(self._bindings(), all_there_are=True)
            self._believed = True
            journal.log_changes(changes)
            self._overlaps = journal.log_overlaps(self.ledger.overlaps(), self._overlaps)
        return changes

    async def refresh(self, keys: Iterable[Key]) -> list[Change]:
        """Read a few containers and apply what changed for them."""
        if self.ledger is None or not self._believed:
            return await self.resync()
        if await asyncio.to_thread(self._kernel.is_disturbed):
            log.warning("somebody has changed or removed our rules: making a full pass")
            return await self.resync()
        self._believed = False
        keys = tuple(keys)
        self._routes = await asyncio.to_thread(proc.read)
        self._internal = self._links().internal
        had_host_ports = any(w.host_ports for w in map(self.snapshot.workloads.get, keys) if w)
        for key in keys:
            await self.look(key)
        self._put(keys)
        if had_host_ports or any(key in self.snapshot.workloads or key in self.reserved for key in keys):
            translations = await asyncio.to_thread(self._translations.read, self._routes.addresses)
            await tell_listeners(self.ledger, translations=translations)
        changes = await self._claims.settle(self.ledger)
        links = self._links()
        transaction = self._kernel.difference(changes, links)
        self.host_settings.ensure(links, ipv6=self._serves_ipv6())
        await asyncio.to_thread(self._firewalls.ensure_once, links)
        await self._commit(transaction)
        await self._claims.serve(change.new for change in changes)
        self._believed = True
        journal.log_changes(changes)
        return changes

    def bindings(self, key: Key) -> tuple[Binding, ...]:
        """Give what became of a container's requests."""
        return self.ledger.bindings(key) if self.ledger else ()

    def configure(self, settings: Settings) -> None:
        """Take other settings; the full pass that must follow brings everything to them."""
        self.settings = settings
        self._firewalls = Firewalls(settings.config)
        self._believed = False
        if self.ledger is not None:
            self.ledger.set_policy(settings.config.policy)

    def _concerns(self, container: Container) -> bool:
        """Whether a container asks for ports, or is ours to remove."""
        return asks(container, trust_labels=self.settings.config.policy.trust_labels) or is_auto_remove(container)

    async def _read_all(self) -> None:
        self._internal = self._links().internal
        seen: set[Key] = set()
        concerning: set[Key] = set()
        for namespace in await self._client.namespaces():
            if namespace in FOREIGN_NAMESPACES:
                continue
            containers = await self._client.containers(namespace)
            seen.update(c.key for c in containers)
            asking = [c for c in containers if self._concerns(c)]
            concerning.update(c.key for c in asking)
            tasks = await self._client.tasks(namespace) if asking else {}
            for container in asking:
                await self._note(container, tasks.get(container.key.id))
        for key in [k for k in self.snapshot.workloads if k not in concerning]:
            del self.snapshot.workloads[key]
        self.snapshot.uncertain &= seen
        self.snapshot.known = seen

    async def look(self, key: Key) -> None:
        """Read one container as it is now."""
        try:
            container = await self._client.container(key)
        except NotFoundError:
            self.snapshot.workloads.pop(key, None)
            self.snapshot.uncertain.discard(key)
            self.snapshot.known.discard(key)
            return
        self.snapshot.known.add(key)
        if self._concerns(container):
            await self._note(container, await self._client.task(key))
        else:
            self.snapshot.workloads.pop(key, None)

    async def _note(self, container: Container, task: Task | None) -> None:
        """Take a container into the snapshot as it is now."""
        key = container.key
        before = self.snapshot.workloads.get(key)
        self.snapshot.uncertain.discard(key)
        try:
            if task is None and before is not None and before.endpoint is not None:
                task = await self._client.task(key)  # a listing leaves out a task whose shim does not answer
            live = task is not None and task.status.live
            endpoint = await self._endpoint(container, task) if live and task else None
        except ContainerdError as error:
            log.warning("no clear answer about the task of %s: %s", key, error.message)
            self.snapshot.uncertain.add(key)
            return
        if task is not None and task.status is Status.UNKNOWN:
            self.snapshot.uncertain.add(key)
            return
        if endpoint is None and before is not None and before.endpoint is not None and before.host_ports:
            self.snapshot.uncertain.add(key)  # portmap takes its rules away after the task has ended
        exited = task is not None and task.status is Status.STOPPED
        if exited and is_auto_remove(container) and key not in self.reserved:
            self.snapshot.exited_for_good.add(key)
        self.snapshot.workloads.pop(key, None)
        trust_labels = self.settings.config.policy.trust_labels
        workload = read_workload(container, endpoint, internal=self._internal, trust_labels=trust_labels)
        if workload is not None:
            self.snapshot.workloads[key] = workload
            if before is None or before.problems != workload.problems:
                for problem in workload.problems:
                    log.warning("refused %s: %s", key, problem)

    async def _endpoint(self, container: Container, task: Task) -> Endpoint | None:
        """Read where a task is reached. A pid is believed only if the task still has it after the reading."""
        try:
            inside = await asyncio.to_thread(proc.read, task.pid)
        except OSError:
            return None
        again = await self._client.task(container.key)
        if again is None or again.pid != task.pid or not again.status.live:
            return None
        ipv4, ipv6 = inside.ipv4, inside.ipv6
        towards = next((self._routes.interface_towards(a) for a in (ipv4, ipv6) if a), None)
        return Endpoint(ipv4=ipv4, ipv6=ipv6, interface=towards)

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

    def _links(self) -> Links:
        workloads = (*self.snapshot.workloads.values(), *self.reserved.values())
        towards = {w.endpoint.interface for w in workloads if w.endpoint and w.endpoint.interface}
        for name in {n for n in towards if not ruleset.can_name(n)}:
            log.warning("interface %a cannot be named in nftables: a container behind it cannot reach itself", name)
            towards.discard(name)
        ours = networks.load_all(self.settings.root)
        return Links(
            bridges=frozenset(n.bridge for n in ours),
            internal=frozenset(n.bridge for n in ours if n.internal),
            isolated=frozenset(n.bridge for n in ours if n.isolate),
            endpoints=frozenset(towards),
        )

    def _serves_ipv6(self) -> bool:
        return any(self._kernel.elements[name] for name in ruleset.IPV6_MAPS)

    async def _commit(self, transaction: Transaction | None) -> None:
        await asyncio.to_thread(self._kernel.commit, transaction, self.table)
