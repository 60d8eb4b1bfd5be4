"""What a writer does for others: the same for the watcher's clients and for a command that is its own writer.

Requests and results are plain JSON, so that it makes no difference whether a socket lies between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from ctrport.errors import ConflictError, CtrportError
from ctrport.model import ports
from ctrport.model.bindings import State
from ctrport.model.workload import Endpoint, Key, Workload
from ctrport.network import administer, attach, define

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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
        self.operations: dict[str, Callable[..., Awaitable[Json]]] = {
            "reserve": self.reserve,
            "converge": self.converge,
            "release": self.release,
            "bindings": self.bindings,
            "resync": self.resync,
            "create_network": self.create_network,
            "remove_network": self.remove_network,
        }

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
        return {"changes": len(changes), **await self.bindings()}

    async def converge(self, containers: list[list[str]]) -> Json:
        """Bring a few containers' ports to what they should be; gives their mappings."""
        keys = [Key(*c) for c in containers]
        async with self._turn:
            await self._reconciler.refresh(keys)
            for key in keys:
                await self._detach_if_gone(key)
            await self._remove_exited()
        return {"containers": [self._container(key) for key in keys]}

    async def reserve(self, container: list[str], publish: str, network: str, ip: str | None) -> Json:
        """Give a container that is about to be created its address and ports.

        ConflictError when a port cannot be had, and then nothing of it stays. The reservation lasts until
        `release`, or until the container runs.
        """
        key = Key(*container)
        mappings, errors = ports.parse_list(publish)
        if errors:
            raise errors[0]
        async with self._turn:
            if self._reconciler.ledger is None:
                await self._reconciler.resync()  # and so fail before anything is made where the kernel cannot
            if key in self._reconciler.reserved or key in self._reconciler.snapshot.known:
                raise ConflictError(f"a container named {key.id} exists already, or is being created")
            await asyncio.to_thread(attach.detach, self._settings.root, key)  # what another of that name left
            wanted = IPv4Address(ip) if ip else None
            attachment = await asyncio.to_thread(attach.attach, self._settings, key, network, wanted)
            self._reconciler.reserved[key] = Workload(
                key=key,
                created_at=time.time_ns(),
                requests=mappings,
                endpoint=Endpoint(ipv4=attachment.ipv4, ipv6=attachment.ipv6, interface=attachment.bridge),
            )
            try:
                await self._reconciler.refresh([key])
                lost = [b for b in self._reconciler.bindings(key) if b.state is not State.ACTIVE]
                if lost:
                    raise ConflictError(
                        "; ".join(f"{b.mapping}: {b.reason}" for b in lost[:5]),
                        hint="choose another host port, or stop who holds it",
                    )
            except CtrportError:
                await self._release(key)
                raise
        return {
            "netns": str(attachment.netns),
            "ipv4": str(attachment.ipv4) if attachment.ipv4 else None,
            "ipv6": str(attachment.ipv6) if attachment.ipv6 else None,
            "dns": attachment.dns,
            **self._container(key),
        }

    async def release(self, container: list[str]) -> Json:
        """End a reservation, and take a container that does not exist (any more) off its network."""
        key = Key(*container)
        async with self._turn:
            await self._release(key)
        return self._container(key)

    async def bindings(self, container: list[str] | None = None) -> Json:
        """Give the mappings of one container or of all, as of the last pass."""
        reconciler = self._reconciler
        keys = [Key(*container)] if container else sorted(reconciler.snapshot.workloads)
        return {"containers": [self._container(key) for key in keys], "last_resync": self.last_resync}

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
        self._reconciler.reserved.pop(key, None)
        await self._reconciler.refresh([key])
        await self._detach_if_gone(key)

    async def _detach_if_gone(self, key: Key) -> None:
        """Take a container that does not exist off its network."""
        if key not in self._reconciler.snapshot.known and key not in self._reconciler.reserved:
            await asyncio.to_thread(attach.detach, self._settings.root, key)

    async def _remove_exited(self) -> None:
        """Remove what `run -d --rm` left behind; a failure is told and tried again at the next pass."""
        snapshot = self._reconciler.snapshot
        for key in sorted(snapshot.exited_for_good):
            try:
                await self._client.delete_task(key)
                await self._client.delete_container(key)
                await self._release(key)
                snapshot.exited_for_good.discard(key)
                log.info("removed %s: it has exited and was run with --rm", key)
            except CtrportError as error:
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
