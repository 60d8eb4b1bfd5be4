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
    known = {key.id for key in silent if key.namespace == namespace}
    failures: list[ContainerdError] = []
    asked = await each(client, [Key(namespace, name) for name in names if name not in known], failures)
    if failures and len(failures) == len(names):
        raise failures[0]
    found = {key.id: task for key, task in asked.items() if task is not None}
    return found | {name: UNKNOWN for name in names if name in known}


async def each(
    client: Client, keys: Collection[Key], failures: list[ContainerdError] | None = None
) -> dict[Key, Task | None]:
    """Ask for some tasks one by one, many at a time; UNKNOWN stands for no answer, which is one of the failures."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def ask(key: Key) -> Task | None:
        try:
            async with limit:
                return await client.task(key)
        except ContainerdError as error:
            log.warning("no clear answer about the task of %s: %s", key, error.message)
            if failures is not None:
                failures.append(error)
            return UNKNOWN

    return dict(zip(keys, await asyncio.gather(*map(ask, keys)), strict=True))
