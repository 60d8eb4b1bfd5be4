"""What containerd, and the containers' network namespaces, say of the containers that matter to ports.

Each container is read as it is now, whatever was known of it. Where no clear answer comes, what was known stays,
and the container is named among the uncertain. Must not know what becomes of the ports.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from ctrport import tasks
from ctrport.errors import ContainerdError, NotFoundError
from ctrport.model.amendment import EXTENSION
from ctrport.model.annotations import (
    FOREIGN_NAMESPACES,
    annotated,
    asks,
    asks_for_exposed,
    is_auto_remove,
    read_workload,
)
from ctrport.model.workload import Endpoint, Status
from ctrport.network import proc

if TYPE_CHECKING:
    from collections.abc import Collection

    from ctrport.containerd.client import Client
    from ctrport.model.annotations import Exposed
    from ctrport.model.ports import PortMapping
    from ctrport.model.workload import Container, Key, Task, Workload

log = logging.getLogger(__name__)


class Snapshot:
    """What the last passes saw: every container that asks for ports, and all others' names."""

    def __init__(self, client: Client, reserved: Collection[Key]) -> None:
        self.workloads: dict[Key, Workload] = {}
        self.exited_for_good: set[Key] = set()  # `run -d --rm` whose task has ended
        self.uncertain: set[Key] = set()  # to be looked at once more; see `_note`
        self.known: set[Key] = set()  # every container of every namespace, as of the last full reading
        self.trials: dict[Key, bytes] = {}  # by `publish`: extensions that containerd is not told of yet
        self.trust_labels = False  # as the policy says
        self.routes = proc.NetworkNamespace((), ())  # of this host, as of this pass
        self.internal: frozenset[str] = frozenset()  # bridges of internal networks, as of this pass
        self._client = client
        self._reserved = reserved  # containers that `run` is making

    def _concerns(self, container: Container) -> bool:
        """Whether a container asks for ports, or is ours to remove."""
        asking = asks(container, trust_labels=self.trust_labels) or container.key in self.trials
        return asking or is_auto_remove(container)

    async def read_all(self) -> None:
        """Read every container that there is."""
        seen: set[Key] = set()
        concerning: set[Key] = set()
        for namespace in await self._client.namespaces():
            if namespace in FOREIGN_NAMESPACES:
                continue
            containers = await self._client.containers(namespace)
            seen.update(c.key for c in containers)
            asking = [c for c in containers if self._concerns(c)]
            concerning.update(c.key for c in asking)
            names = [c.key.id for c in asking]
            found = await tasks.read(self._client, namespace, names, self.uncertain) if asking else {}
            for container in asking:
                await self._note(container, found.get(container.key.id), listed=True)
        for key in [k for k in self.workloads if k not in concerning]:
            del self.workloads[key]
        self.uncertain &= seen
        self.known = seen

    async def look(self, key: Key) -> None:
        """Read one container as it is now."""
        try:
            container = await self._client.container(key)
        except NotFoundError:
            self.workloads.pop(key, None)
            self.uncertain.discard(key)
            self.known.discard(key)
            return
        self.known.add(key)
        if self._concerns(container):
            await self._note(container)
        else:
            self.workloads.pop(key, None)

    async def _note(self, container: Container, task: Task | None = None, *, listed: bool = False) -> None:
        """Take a container into the snapshot as it is now, with the task that a listing gave or asking for it.

        A listing leaves out a task whose shim does not answer. Who was asked in vain is not asked by every listing
        again, which would hold up all others each time: the watcher asks beside the passes.
        """
        key = container.key
        before = self.workloads.get(key)
        if listed and task is None and key in self.uncertain:
            return
        self.uncertain.discard(key)
        if key in self.trials:
            container = replace(container, extensions={**container.extensions, EXTENSION: self.trials[key]})
        try:
            if task is None and (not listed or before is None or before.endpoint is not None):
                task = await self._client.task(key)
            live = task is not None and task.status.live
            endpoint = await self._endpoint(container, task) if live and task else None
            exposed = await self._exposed(container)
        except ContainerdError as error:
            log.warning("no clear answer about the task of %s: %s", key, error.message)
            self.uncertain.add(key)
            return
        if task is not None and task.status is Status.UNKNOWN:
            self.uncertain.add(key)
            return
        if endpoint is None and before is not None and before.endpoint is not None and before.host_ports:
            self.uncertain.add(key)  # portmap takes its rules away after the task has ended
        exited = task is not None and task.status is Status.STOPPED
        if exited and is_auto_remove(container) and key not in self._reserved:
            self.exited_for_good.add(key)
        self._take(container, endpoint, exposed)

    def _take(self, container: Container, endpoint: Endpoint | None, exposed: Exposed | None) -> None:
        """Keep what a container asks for; what of it cannot be read is told once."""
        before = self.workloads.pop(container.key, None)
        workload = read_workload(
            container, endpoint, internal=self.internal, trust_labels=self.trust_labels, exposed=exposed
        )
        if workload is not None:
            self.workloads[container.key] = workload
            if before is None or before.problems != workload.problems:
                for problem in workload.problems:
                    log.warning("refused %s: %s", container.key, problem)

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
        towards = next((self.routes.interface_towards(a) for a in (ipv4, ipv6) if a), None)
        return Endpoint(ipv4=ipv4, ipv6=ipv6, interface=towards)

    async def asked(self, container: Container) -> tuple[PortMapping, ...]:
        """Give what a container asks for by its annotation alone."""
        exposed = await self._exposed(container)
        return annotated(container, exposed, trust_labels=self.trust_labels)[0]

    async def _exposed(self, container: Container) -> Exposed | None:
        """Give the ports that a container's image exposes, where it asks for them by `all`.

        None when they are not known. The image may be removed while the container runs: what was read stays.
        """
        if not asks_for_exposed(container, trust_labels=self.trust_labels):
            return None
        before = self.workloads.get(container.key)
        if before is not None and before.exposed is not None and before.created_at == container.created_at:
            return before.exposed
        return await self._client.exposed_ports(container)
