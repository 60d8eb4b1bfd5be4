"""What containerd, and the containers' network namespaces, say of the containers that matter to ports.

Each container is read as it is now, whatever was known of it. Where no clear answer comes, what was known stays,
and the container is named among the uncertain. Must not know what becomes of the ports.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

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
from ctrport.model.workload import Endpoint, Status, Task
from ctrport.network import proc

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from ctrport.containerd.client import Client
    from ctrport.model.annotations import Exposed
    from ctrport.model.ports import PortMapping
    from ctrport.model.workload import Container, Key, Start, Workload

log = logging.getLogger(__name__)
NO_STARTS: Mapping[Key, Start] = {}


class Answer(NamedTuple):
    """What containerd says of a container and its task, and when it was asked (`proc.uptime`)."""

    container: Container
    task: Task | None
    asked_at: float


def processes(answers: Iterable[Answer]) -> dict[int, proc.Process | None]:
    """Read the processes of the tasks that run, by pid; None for one that is gone. Blocks."""
    pids = {a.task.pid for a in answers if a.task is not None and a.task.status.live}
    return {pid: proc.read_process(pid) for pid in pids}


def _holds(start: Start) -> bool:
    """Say whether the process that was started is there still: one that was there then and has its pid now."""
    begun = proc.started(start.pid)
    return begun is not None and begun <= start.at


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
            if asking:
                await self.take(await self._answers(namespace, asking))
        for key in [k for k in self.workloads if k not in concerning]:
            del self.workloads[key]
        self.uncertain &= seen
        self.known = seen

    async def look(self, *keys: Key) -> None:
        """Read a few containers as they are now."""
        await self.take(await self.ask(keys))

    async def ask(self, keys: Iterable[Key], starts: Mapping[Key, Start] = NO_STARTS) -> list[Answer]:
        """Ask containerd about a few containers; those that do not concern us are forgotten at once.

        Whose task has just started is not asked for its task, if it is sure which one that is.
        """
        answers = await asyncio.gather(*(self._ask(k, starts.get(k)) for k in keys), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, Answer)]

    async def take(self, answers: Sequence[Answer]) -> None:
        """Take what containerd answered, with what the tasks' namespaces say now."""
        await self.note(answers, await asyncio.to_thread(processes, answers))

    async def note(self, answers: Iterable[Answer], found: Mapping[int, proc.Process | None]) -> None:
        """Take what containerd answered, with what the tasks' namespaces said; see `processes`."""
        for answer in answers:
            await self._note(answer, found)

    async def _ask(self, key: Key, start: Start | None) -> Answer | None:
        """Ask for record and task at once, as an event waits for both; not for what the event has told."""
        start = start if start is not None and _holds(start) else None
        task = Task(pid=start.pid, status=Status.RUNNING) if start else None
        asked_at = start.at if start else proc.uptime()
        asking = asyncio.create_task(tasks.each(self._client, [] if task else [key]))
        try:
            container = (start.container if start else None) or await self._client.container(key)
            self.known.add(key)
            if self._concerns(container):
                return Answer(container, task or (await asking)[key], asked_at)
        except NotFoundError:
            self.uncertain.discard(key)
            self.known.discard(key)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        self.workloads.pop(key, None)
        return None

    async def _answers(self, namespace: str, containers: list[Container]) -> list[Answer]:
        """Ask for the tasks of containers that were listed.

        A listing leaves out a task whose shim does not answer. Who was asked in vain is not asked by every listing
        again, which would hold up all others each time: the watcher asks beside the passes.
        """
        asked_at = proc.uptime()
        names = [c.key.id for c in containers]
        found: dict[str, Task | None] = {**await tasks.read(self._client, namespace, names, self.uncertain)}
        left_out = [c.key for c in containers if c.key.id not in found and self._may_run(c.key)]
        found |= {key.id: task for key, task in (await tasks.each(self._client, left_out)).items()}
        return [
            Answer(c, found.get(c.key.id), asked_at)
            for c in containers
            if c.key.id in found or c.key not in self.uncertain
        ]

    def _may_run(self, key: Key) -> bool:
        before = self.workloads.get(key)
        return key not in self.uncertain and (before is None or before.endpoint is not None)

    async def _note(self, answer: Answer, found: Mapping[int, proc.Process | None]) -> None:
        """Take a container into the snapshot as it is now."""
        container, task = answer.container, answer.task
        key = container.key
        before = self.workloads.get(key)
        self.uncertain.discard(key)
        if task is not None and task.status is Status.UNKNOWN:
            self.uncertain.add(key)
            return
        if key in self.trials:
            container = replace(container, extensions={**container.extensions, EXTENSION: self.trials[key]})
        try:
            live = task is not None and task.status.live
            endpoint = await self._endpoint(answer, task, found[task.pid]) if live and task else None
            exposed = await self._exposed(container)
        except ContainerdError as error:
            log.warning("no clear answer about %s: %s", key, error.message)
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

    async def _endpoint(self, answer: Answer, task: Task, process: proc.Process | None) -> Endpoint | None:
        """Give where a task is reached.

        A process that was there before containerd was asked for the task, and is there still, is the task's. A
        younger one may have the pid of a task that has ended meanwhile, so containerd is asked once more.
        """
        if process is None:
            return None
        if process.started > answer.asked_at:
            again = await self._client.task(answer.container.key)
            if again is None or again.pid != task.pid or not again.status.live:
                return None
        ipv4, ipv6 = process.namespace.ipv4, process.namespace.ipv6
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
