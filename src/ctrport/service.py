"""What a writer does for others: the same for the watcher's clients and for a command that is its own writer.

Requests and results are plain JSON, so that it makes no difference whether a socket lies between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from ctrport.errors import ConflictError, CtrportError, HostError, KernelError
from ctrport.model import ports
from ctrport.model.bindings import State
from ctrport.model.workload import Key, Status, Workload
from ctrport.network import administer, attach, define, files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ctrport.containerd.client import Client
    from ctrport.reconcile import Reconciler

log = logging.getLogger(__name__)
Json = dict[str, Any]


class Service:
    """One writer's passes, one at a time."""

    def __init__(self, client: Client, reconciler: Reconciler) -> None:
        self._client = client
        self._reconciler = reconciler
        self._settings = reconciler.settings
        self._turn = asyncio.Lock()
        self.last_resync = 0.0  # seconds since the epoch

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

    def uncertain(self) -> tuple[Key, ...]:
        """Give the containers whose tasks gave no clear answer: they were left as they were."""
        return tuple(self._reconciler.snapshot.uncertain)

    async def resync(self) -> Json:
        """Make one full pass: containers, rules, networks."""
        async with self._turn:
            changes = await self._reconciler.resync()
            snapshot = self._reconciler.snapshot
            connected = await asyncio.to_thread(
                attach.repair, self._settings, frozenset(snapshot.known), frozenset(self._reconciler.reserved)
            )
            if connected:  # without an address they had no endpoint a moment ago
                changes += await self._reconciler.refresh(connected)
            await self._remove_exited()
            self.last_resync = time.time()
        return {"changes": len(changes), "trouble": self._trouble, **await self.bindings()}

    async def converge(self, containers: list[list[str]]) -> Json:
        """Bring a few containers' ports to what they should be; gives their mappings."""
        keys = [Key(*c) for c in containers]
        async with self._turn:
            await self._reconciler.refresh(keys)
            for key in keys:
                await self._detach_if_gone(key)
            await self._remove_exited()
        return {"containers": [self._container(key) for key in keys]}

    async def reserve(self, container: list[str], publish: str, network: str | None, ip: str | None) -> Json:
        """Give a container that is about to be created its name and, on a network of ours, address and ports.

        ConflictError when one of them cannot be had, and then nothing of it stays. The reservation lasts until
        `release`.
        """
        key = Key(*container)
        mappings, errors = ports.parse_list(publish)
        if errors:
            raise errors[0]
        async with self._turn:
            if self._reconciler.ledger is None:
                # And so fail before anything is made where the kernel cannot.
                await self._reconciler.resync(apply=network is not None)
            if key in self._reconciler.reserved or key in self._reconciler.snapshot.known:
                raise ConflictError(f"a container named {key.id} exists already, or is being created")
            await asyncio.to_thread(attach.detach, self._settings.root, key)  # what another of that name left
            workload = Workload(key=key, created_at=time.time_ns(), requests=mappings)
            self._reconciler.reserved[key] = workload
            try:
                files.make_directory(self._settings.root, key)
                attachment = None
                if network is not None:
                    wanted = IPv4Address(ip) if ip else None
                    attachment = await asyncio.to_thread(attach.attach, self._settings, key, network, wanted)
                    self._reconciler.reserved[key] = replace(workload, endpoint=attachment.endpoint)
                    await self._reconciler.refresh([key])
                    self._check_given(key)
            except BaseException:
                await self._release(key)
                raise
        return {
            "netns": str(attachment.netns) if attachment else None,
            "ipv4": str(attachment.ipv4) if attachment and attachment.ipv4 else None,
            "ipv6": str(attachment.ipv6) if attachment and attachment.ipv6 else None,
            "dns": attachment.dns if attachment else (),
            **self._container(key),
        }

    async def release(self, container: list[str], *, owned: bool) -> Json:
        """End a reservation of the caller's own; take a container that does not exist off its network.

        Whoever does not own a reservation leaves it alone: it belongs to a `run` that is at work.
        """
        key = Key(*container)
        async with self._turn:
            if owned or key not in self._reconciler.reserved:
                await self._release(key)
        return {**self._container(key), "trouble": self._trouble}

    async def bindings(self, container: list[str] | None = None) -> Json:
        """Give the mappings of one container or of all, as of the last pass."""
        reconciler = self._reconciler
        keys = [Key(*container)] if container else sorted(reconciler.snapshot.workloads)
        return {"containers": [self._container(key) for key in keys], "last_resync": self.last_resync}

    @property
    def _trouble(self) -> list[str]:
        """What this host needs and the last pass could not set."""
        return list(self._reconciler.host_settings.trouble)

    def _check_given(self, key: Key) -> None:
        lost = [b for b in self._reconciler.bindings(key) if b.state is not State.ACTIVE]
        if lost:
            raise ConflictError(
                "; ".join(f"{b.mapping}: {b.reason}" for b in lost[:5]),
                hint="choose another host port, or stop who holds it",
            )

    async def create_network(self, **wish: Any) -> Json:
        """Make a network from the words of `ctrport network create`; gives it as it was made."""
        wanted = define.read(**wish)
        async with self._turn:
            if self._reconciler.ledger is None:
                await self._reconciler.resync()  # and so fail before anything is made where the kernel cannot
            network = await asyncio.to_thread(administer.create, self._settings.root, wanted)
            await self._reconciler.refresh([])
        return administer.describe(self._settings.root, network)

    async def remove_network(self, name: str) -> Json:
        """Remove a network that no container is on."""
        async with self._turn:
            await asyncio.to_thread(administer.remove, self._settings.root, name)
            await self._reconciler.refresh([])
        return {}

    async def _release(self, key: Key) -> None:
        workload = self._reconciler.reserved.pop(key, None)
        try:
            if workload is not None and workload.endpoint is None:
                await self._reconciler.look(key)  # on no network of ours: no rule speaks of it
            else:
                await self._reconciler.refresh([key])
        except (KernelError, HostError):  # the container was read before the kernel was written
            await self._detach_if_gone(key)
            raise
        await self._detach_if_gone(key)

    async def _detach_if_gone(self, key: Key) -> None:
        """Take a container that does not exist off its network."""
        if key not in self._reconciler.snapshot.known and key not in self._reconciler.reserved:
            await asyncio.to_thread(attach.detach, self._settings.root, key)

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


class Session:
    """One client of a service: its operations, and what it has reserved and not released yet."""

    watched = False  # for a command that is its own writer

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reserved: set[Key] = set()

    async def call(self, operation: str, **arguments: Any) -> Json:
        """Do an operation. What has begun comes to its end even if the caller is cancelled.

        KeyError for an operation that there is not, TypeError for arguments that it does not take.
        """
        work = asyncio.ensure_future(self._perform(operation, arguments))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    async def close(self) -> None:
        """Release what is still reserved."""
        for key in sorted(self._reserved):
            try:
                await self._service.release(list(key), owned=True)
            except (CtrportError, OSError) as error:
                log.warning("could not release what was reserved for %s: %s", key, error)

    async def _perform(self, operation: str, arguments: Json) -> Json:
        service = self._service
        if operation == "reserve":
            result = await service.reserve(**arguments)
            self._reserved.add(Key(*arguments["container"]))
            return result
        if operation == "release":
            key = Key(*arguments["container"])
            result = await service.release(**arguments, owned=key in self._reserved)
            self._reserved.discard(key)
            return result
        plain: dict[str, Callable[..., Awaitable[Json]]] = {
            "converge": service.converge,
            "bindings": service.bindings,
            "resync": service.resync,
            "create_network": service.create_network,
            "remove_network": service.remove_network,
        }
        return await plain[operation](**arguments)
