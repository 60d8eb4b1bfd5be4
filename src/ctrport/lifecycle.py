"""Stopping and removing containers, whoever made them."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from ctrport.errors import ConflictError, ContainerdError, NotFoundError
from ctrport.model.workload import Status
from ctrport.run.translate import RESTART_STATUS, RESTART_STOPPED

if TYPE_CHECKING:
    from ctrport.containerd.client import Client
    from ctrport.model.workload import Container, Key, Task

POLL = 0.02  # seconds between looks at a task that is to end
KILL_PATIENCE = 10.0  # seconds for a task to end after SIGKILL


async def stop(client: Client, container: Container, *, patience: float) -> None:
    """End a container's task: SIGTERM, after `patience` seconds SIGKILL. One that does not run is left as it is.

    A restart policy is told first, else containerd would start the task again.
    """
    key = container.key
    if RESTART_STATUS in container.labels:
        await client.set_labels(key, {RESTART_STATUS: "stopped", RESTART_STOPPED: "true"})
    task = await client.task(key)
    if task is None:
        return
    if task.status.live or task.status is Status.CREATED:
        await _kill(client, key, signal.SIGTERM)
        if not await _ended(client, key, patience):
            await kill(client, key)
    await client.delete_task(key)


async def kill(client: Client, key: Key) -> None:
    """End a task with SIGKILL. ContainerdError when it outlives even that."""
    await _kill(client, key, signal.SIGKILL)
    if not await _ended(client, key, KILL_PATIENCE):
        raise ContainerdError(
            f"{key} did not end within {KILL_PATIENCE:.0f} s of SIGKILL", hint=f"ctr task ls; {key}"
        )


async def remove(client: Client, key: Key, *, force: bool) -> None:
    """Remove a container's task, record and snapshot. ConflictError for one that runs, unless forced."""
    task: Task | None = await client.task(key)
    if task is not None and task.status.live:
        if not force:
            raise ConflictError(f"container {key.id} is running", hint=f"ctrport stop {key.id}, or rm -f")
        await kill(client, key)
    if task is not None:
        await client.delete_task(key)
    await client.delete_container(key)


async def _kill(client: Client, key: Key, number: int) -> None:
    try:
        await client.kill(key, number)
    except NotFoundError:  # it ended while we looked
        return


async def _ended(client: Client, key: Key, patience: float) -> bool:
    try:
        async with asyncio.timeout(patience):
            while True:
                task = await client.task(key)
                if task is None or task.status is Status.STOPPED:
                    return True
                await asyncio.sleep(POLL)
    except TimeoutError:
        return False
