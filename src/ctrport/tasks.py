"""Tasks of many containers, of which some give no answer: a shim that hangs takes none of the others along.

containerd asks a task's shim for its state and waits 2 s for each that is silent, one after the other when it lists
them (seen with 1.6.20): five of them, and no listing comes in time. So a listing is asked for only while none is
known to be silent; those that are known are not asked here, but by the watcher beside its passes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ctrport.errors import ContainerdError
from ctrport.model.workload import Key, Status, Task

if TYPE_CHECKING:
    from collections.abc import Collection

    from ctrport.containerd.client import Client

log = logging.getLogger(__name__)
AT_ONCE = 32  # calls
UNKNOWN = Task(pid=0, status=Status.UNKNOWN)


async def read(client: Client, namespace: str, names: Collection[str], silent: Collection[Key]) -> dict[str, Task]:
    """Give the tasks of some containers of a namespace by name; UNKNOWN stands for no answer.

    ContainerdError when nobody at all is answered for.
    """
    if not any(key.namespace == namespace for key in silent):
        try:
            return await client.tasks(namespace)
        except ContainerdError as error:
            log.warning("asking for each task by itself: %s", error.message)
    limit = asyncio.Semaphore(AT_ONCE)
    failures: list[ContainerdError] = []

    async def ask(name: str) -> tuple[str, Task | None]:
        key = Key(namespace, name)
        if key in silent:
            return name, UNKNOWN
        try:
            async with limit:
                return name, await client.task(key)
        except ContainerdError as error:
            failures.append(error)
            return name, UNKNOWN

    found = await asyncio.gather(*(ask(name) for name in names))
    if failures and len(failures) == len(names):
        raise failures[0]
    return {name: task for name, task in found if task is not None}
