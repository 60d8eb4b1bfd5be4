"""Tasks of containers, of which some give no answer: a shim that hangs takes none of the others along.

containerd asks a task's shim for its state and waits 2 s for each that is silent, one after the other when it lists
them (seen with 1.6.20). So shims that are known to be silent are not asked by passes; `look_again` asks them beside
the passes, all at once, and says when one speaks again. What is unknown leaves a container's ports as they were.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ctrport.errors import ContainerdError
from ctrport.model.workload import Key, Status, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ctrport.containerd.client import Client

log = logging.getLogger(__name__)
AT_ONCE = 32  # calls
PAUSES = (2.0, 30.0)  # seconds between questions to silent shims: the first, and the longest
UNKNOWN = Task(pid=0, status=Status.UNKNOWN)


async def read(client: Client, namespace: str, names: Collection[str], silent: Collection[Key]) -> dict[str, Task]:
    """Give the tasks of containers of a namespace by name; UNKNOWN stands for no answer."""
    if not any(key.namespace == namespace for key in silent):
        try:
            return await client.tasks(namespace)
        except ContainerdError as error:
            log.warning("asking for each task by itself: %s", error.message)
    limit = asyncio.Semaphore(AT_ONCE)

    async def ask(name: str) -> tuple[str, Task | None]:
        key = Key(namespace, name)
        if key in silent:
            return name, UNKNOWN
        async with limit:
            return name, await one(client, key)

    found = await asyncio.gather(*(ask(name) for name in names))
    return {name: task for name, task in found if task is not None}


async def one(client: Client, key: Key) -> Task | None:
    """Give a container's task, None when it has none; UNKNOWN stands for no answer."""
    try:
        return await client.task(key)
    except ContainerdError as error:
        log.warning("no clear answer about the task of %s: %s", key, error.message)
        return UNKNOWN


async def look_again(client: Client, silent: Callable[[], Collection[Key]], tell: Callable[[Key], None]) -> None:
    """Ask for tasks that gave no clear answer until they do, and tell of those; endless."""
    pause = PAUSES[0]
    while True:
        await asyncio.sleep(pause)
        keys = sorted(silent())
        found = await asyncio.gather(*(client.task(key) for key in keys), return_exceptions=True)
        clear = [
            key
            for key, task in zip(keys, found, strict=True)
            if task is None or (isinstance(task, Task) and task.status is not Status.UNKNOWN)
        ]
        for key in clear:
            tell(key)
        pause = PAUSES[0] if clear or not keys else min(2 * pause, PAUSES[1])
