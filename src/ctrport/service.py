"""What a writer does for others: the same for the watcher's clients and for a command that is its own writer.

Requests and results are plain JSON, so that it makes no difference whether a socket lies between.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrport import amend
from ctrport.config import render
from ctrport.errors import ConflictError, CtrportError, HostError, KernelError
from ctrport.inquiry import Inquiry
from ctrport.model import ports
from ctrport.model.bindings import State
from ctrport.model.workload import Key, Status, Workload
from ctrport.network import administer, attach, define, files
from ctrport.repairs import Repairs
from ctrport.rhythm import Rhythm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from ctrport.config import Settings
    from ctrport.containerd.client import Client
    from ctrport.model.workload import Start
    from ctrport.reconcile import Reconciler

log = logging.getLogger(__name__)
Json = dict[str, Any]


class Service:
    """One writer's passes, one at a time."""

    def __init__(self, client: Client, reconciler: Reconciler) -> None:
        self._client = client
        self.inquiry = Inquiry(client)
        self._reconciler = reconciler
        self.settings = reconciler.settings  # in force
        self.kernel = reconciler.kernel
        self._turn = asyncio.Lock()
        self.reconfigured = asyncio.Event()
        self.config_error: str | None = None  # of the last reading of config.toml
        self.config_waiting: tuple[str, ...] = ()  # keys whose new values the next start takes
        self.repairs = Repairs()
        self.rhythm = Rhythm()

    @asynccontextmanager
    async def pause(self, patience: float) -> AsyncIterator[None]:
        """Wait for the pass at work, `patience` seconds at most, and let none begin in the block."""
        try:
            async with asyncio.timeout(patience):
                await self._turn.acquire()
        except TimeoutError:
            log.warning("a pass is still at work after %.0f s", patience)
            yield
            return
        try:
            yield
        finally:
            self._turn.release()

    async def configure(self, settings: Settings) -> None:
        """Take other settings between two passes; a full pass must follow."""
        async with self._turn:
            if settings != self.settings:
                self.settings = settings
                self._reconciler.configure(settings)
        self.reconfigured.set()

    async def configuration(self) -> Json:
        """Give the configuration in force, and what kept a later one from it."""
        return {
            "configuration": render.plain(self.settings.config),
            "file": str(self.settings.config_file),
            "error": self.config_error,
            "waiting": list(self.config_waiting),
        }

    async def mend_firewalls(self, touched: Collection[str] | None) -> list[str]:
        """Let our packets pass again where others have touched these tables; gives what had to be mended.

        Beside a pass, which may be waiting for containerd.
        """
        return await asyncio.to_thread(self._reconciler.firewalls.mend, touched)

    def mend_settings(self) -> list[str]:
        """Set again the kernel settings that somebody has changed; gives their names."""
        return self._reconciler.host_settings.mend()

    async def review(self) -> None:
        """Look again at which ports others translate."""
        async with self._turn:
            await self._reconciler.review()

    def uncertain(self) -> tuple[Key, ...]:
        """Give the containers that are to be looked at once more."""
        return tuple(self._reconciler.snapshot.uncertain)

    async def resync(self) -> Json:
        """Make one full pass: containers, rules, networks."""
        async with self._turn:
            self.rhythm.begin()
            changes = await self._reconciler.resync()
            snapshot = self._reconciler.snapshot
            connected = await asyncio.to_thread(
                attach.repair, self.settings, frozenset(snapshot.known), frozenset(self._reconciler.reserved)
            )
            if connected:  # without an address they had no endpoint a moment ago
                changes += await self._reconciler.refresh(connected)
            await self._remove_exited()
            self.rhythm.end()
        trouble = list(self._reconciler.host_settings.trouble)
        return {"changes": len(changes), "trouble": trouble, **await self.bindings()}

    async def converge(self, containers: list[list[str]]) -> Json:
        """Bring a few containers' ports to what they should be; gives their mappings."""
        keys = [Key(*c) for c in containers]
        await self.follow(dict.fromkeys(keys))
        return {"containers": [self._container(key) for key in keys]}

    async def follow(self, doubtful: Mapping[Key, Start | None]) -> None:
        """Bring a few containers' ports to what they should be, some of which have just been started."""
        async with self._turn:
            await self._reconciler.refresh(doubtful, {key: start for key, start in doubtful.items() if start})
            for key in doubtful:
                await self._detach_if_gone(key)
            await self._remove_exited()

    async def reserve(self, container: list[str], network: str | None, labels: dict[str, str]) -> Json:
        """Give a container that is about to be created its name, and the path that its namespace will have.

        ConflictError when another has the name. The reservation lasts until `release`.
        """
        key = Key(*container)
        async with self._turn:
            if self._reconciler.ledger is None:
                # And so fail before anything is made where the kernel cannot.
                await self._reconciler.resync(apply=network is not None)
            if key in self._reconciler.reserved or key in self._reconciler.snapshot.known:
                raise ConflictError(f"a container named {key.id} exists already, or is being created")
            await asyncio.to_thread(attach.detach, self.settings.root, key)  # what another of that name left
            files.make_directory(self.settings.root, key)
            by = tuple(sorted(labels.items()))
            self._reconciler.reserved[key] = Workload(key=key, created_at=0, labels=by)  # and asks for nothing yet
        return {"netns": str(attach.new_namespace(key))}

    async def connect(self, container: list[str], netns: str, publish: str, network: str, ip: str | None) -> Json:
        """Give a container whose name is reserved its address and ports on a network.

        ConflictError when one of them cannot be had; none is asked for then, and all else stays until `release`.
        """
        key, wanted = Key(*container), IPv4Address(ip) if ip else None
        mappings, errors = ports.parse_list(publish)
        if errors:
            raise errors[0]
        async with self._turn:
            made = await asyncio.to_thread(attach.attach, self.settings, key, network, wanted, Path(netns))
            named = self._reconciler.reserved[key]
            # After all who ask by now: a run that was faster since the reservation keeps what it was given.
            stamp = amend.stamp(self._reconciler.ledger)
            asking = replace(named, created_at=stamp, requests=mappings, endpoint=made.endpoint)
            self._reconciler.reserved[key] = asking
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._withdraw, named)
                await self._reconciler.refresh([key])
                self._check_given(key)
                undo.pop_all()
        return {"ipv4": str(made.ipv4 or ""), "ipv6": str(made.ipv6 or ""), "dns": made.dns}

    async def release(self, container: list[str], *, owned: bool, started: bool = False) -> Json:
        """End a reservation of the caller's own; take a container that does not exist off its network.

        Whoever does not own a reservation leaves it alone: it belongs to a `run` that is at work. A container that
        was `started` just now, as its event has told already, needs no other look. Of its requests, which may be
        thousands, those that are not served are given.
        """
        key = Key(*container)
        async with self._turn:
            if owned or key not in self._reconciler.reserved:
                seen = self._reconciler.snapshot.workloads.get(key)
                if started and seen is not None and seen.endpoint is not None:
                    self._reconciler.reserved.pop(key, None)
                else:
                    await self._release(key)
        found = self._reconciler.bindings(key)
        lost = [b.to_json() for b in found if b.state is not State.ACTIVE]
        return {"requests": len(found), "lost": lost, "trouble": list(self._reconciler.host_settings.trouble)}

    async def publish(self, container: list[str], specs: str) -> Json:
        """Add mappings to a container while it runs; see `amend`."""
        key = Key(*container)
        async with self._turn:
            result = await amend.publish(self._client, self._reconciler, key, specs)
        return {**self._container(key), **result}

    async def unpublish(self, container: list[str], specs: str | None) -> Json:
        """Withdraw mappings from a container, all of them for None; see `amend`."""
        key = Key(*container)
        async with self._turn:
            result = await amend.unpublish(self._client, self._reconciler, key, specs)
        return {**self._container(key), **result}

    async def bindings(self, container: list[str] | None = None) -> Json:
        """Give the mappings of one container or of all, as of the last pass."""
        reconciler = self._reconciler
        keys = [Key(*container)] if container else sorted(reconciler.snapshot.workloads)
        return {
            "containers": [self._container(key) for key in keys],
            "since_resync": self.rhythm.since(),
            "resync_seconds": self.rhythm.rest(self.settings.config.resync_seconds),
            "uncertain": [list(key) for key in sorted(self.uncertain())],
            **self.repairs.to_json(),
        }

    async def _withdraw(self, named: Workload) -> None:
        """Let nobody wait for a port in the name of a run that has failed."""
        self._reconciler.reserved[named.key] = named
        with suppress(CtrportError, OSError):
            await self._reconciler.refresh([named.key])

    def _check_given(self, key: Key) -> None:
        lost = [b for b in self._reconciler.bindings(key) if b.state is not State.ACTIVE]
        if lost:
            taken = any(b.state is State.WAITING for b in lost)
            raise ConflictError(
                "; ".join(f"{b.mapping}: {b.reason}" for b in lost[:5]),
                hint="choose another host port, or stop who holds it" if taken else "ctrport config show",
            )

    async def create_network(self, **wish: Any) -> Json:
        """Make a network from the words of `ctrport network create`; gives it as it was made."""
        wanted = define.read(**wish)
        async with self._turn:
            if self._reconciler.ledger is None:
                await self._reconciler.resync()  # and so fail before anything is made where the kernel cannot
            network = await asyncio.to_thread(administer.create, self.settings.root, wanted)
            await self._reconciler.refresh([])
        return administer.describe(self.settings.root, network)

    async def remove_network(self, name: str) -> Json:
        """Remove a network that no container is on."""
        async with self._turn:
            await asyncio.to_thread(administer.remove, self.settings.root, name)
            await self._reconciler.refresh(())
        return {}

    async def _release(self, key: Key) -> None:
        workload = self._reconciler.reserved.pop(key, None)
        try:
            if workload is not None and workload.endpoint is None:
                await self._reconciler.snapshot.look(key)  # on no network of ours: no rule speaks of it
            else:
                await self._reconciler.refresh([key])
        except (KernelError, HostError):  # the container was read before the kernel was written
            await self._detach_if_gone(key)
            raise
        await self._detach_if_gone(key)

    async def _detach_if_gone(self, key: Key) -> None:
        """Take a container that does not exist off its network."""
        if key not in self._reconciler.snapshot.known and key not in self._reconciler.reserved:
            await asyncio.to_thread(attach.detach, self.settings.root, key)

    async def _remove_exited(self) -> None:
        """Remove what `run -d --rm` left behind; a failure is told and tried again at the next pass."""
        snapshot = self._reconciler.snapshot
        for key in sorted(snapshot.exited_for_good):
            snapshot.exited_for_good.discard(key)
            try:
                task = await self._client.task(key)
                if task is None or task.status is not Status.STOPPED:
                    continue  # somebody else saw to it, or it runs again
                await self._client.delete_task(key)
                await self._client.delete_container(key)
                await self._release(key)
                log.info("removed %s: it has exited and was run with --rm", key)
            except CtrportError as error:
                snapshot.exited_for_good.add(key)
                log.warning("could not remove %s, will try again: %s", key, error.message)

    def _container(self, key: Key) -> Json:
        workload = self._reconciler.snapshot.workloads.get(key) or self._reconciler.reserved.get(key)
        endpoint = workload.endpoint if workload else None
        return {
            "namespace": key.namespace,
            "id": key.id,
            "addresses": [str(a) for a in (endpoint.ipv4, endpoint.ipv6) if a] if endpoint else [],
            "mappings": [b.to_json() for b in self._reconciler.bindings(key)],
            "problems": list(workload.problems) if workload else [],
        }
