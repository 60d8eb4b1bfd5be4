"""Stopping and removing containers, whoever made them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ctrport.errors import ConflictError, ContainerdError, NotFoundError
from ctrport.model.annotations import in_pod
from ctrport.model.workload import Status
from ctrport.run.translate import RESTART_STATUS, RESTART_STOPPED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ctrport.containerd.client import Client
    from ctrport.model.workload import Container, Key, Task

STOP_SIGNAL = "io.containerd.image.config.stop-signal"  # label: ctr, nerdctl and CRI copy it from the image
POLL = 0.02  # seconds between looks at a task that is to end
KILL_PATIENCE = 10.0  # seconds for a task to end after SIGKILL
SHIM_PATIENCE = 2.0  # seconds for containerd to see that a shim is gone
OWNER_PATIENCE = 0.3  # seconds for a `run` in the foreground to delete its task
PIPE_SIZE = 65536  # bytes


def check_owner(container: Container) -> None:
    """Refuse what belongs to a pod. ConflictError.

    The kubelet would start again what we stop, and the CRI plugin keeps records of its own of what we remove.
    """
    if not in_pod(container):
        return
    pod = container.sandbox.pod if container.sandbox else None
    what = f"{container.name} is a pod" if pod else f"container {container.name} is a part of a pod"
    mend = "kubectl delete pod"
    if pod:
        unpublish = f"ctrport unpublish {container.name} --all"
        mend = f"kubectl -n {pod.namespace} delete pod {pod.name}; for its ports alone: {unpublish}"
    raise ConflictError(f"{what}, which Kubernetes starts, stops and removes", hint=mend)


async def stop(client: Client, container: Container, *, patience: float) -> None:
    """End a container's task: `stop_signal`, after `patience` seconds SIGKILL. One that has ended is left as it is.

    A restart policy is told first, else containerd would start the task again.
    """
    key = container.key
    await _end_restarts(client, container)
    task = await client.task(key)
    if task is None:
        return
    if task.status.live or task.status is Status.CREATED:
        await _kill(client, key, stop_signal(container.labels))
        if not await _reached(client, key, patience, Status.STOPPED):
            await kill(client, key)
    # Who runs it in the foreground takes the exit code from the task and deletes it: let them.
    if not await _reached(client, key, OWNER_PATIENCE, None):
        await _delete(client, key)


def stop_signal(labels: Mapping[str, str]) -> int:
    """Give the signal that ends a container's program, as its image's STOPSIGNAL says; SIGTERM where it says none.

    Docker takes a number, or a name with or without SIG; of the real-time signals only the ends have names.
    """
    match = re.fullmatch(r"(?:SIG)?([A-Z0-9]+)([+-]\d+)?", labels.get(STOP_SIGNAL, "").upper())
    if match is None:
        return signal.SIGTERM
    name, offset = match.groups()
    found = signal.Signals.__members__.get(f"SIG{name}")
    number = (int(name) if name.isdecimal() else found or 0) + int(offset or 0)
    return number if 0 < number <= signal.SIGRTMAX else signal.SIGTERM


async def ends(client: Client, key: Key, *, within: float) -> bool:
    """Say whether a task has ended, or does so within some seconds."""
    return await _reached(client, key, within, Status.STOPPED)


async def kill(client: Client, key: Key) -> None:
    """End a task with SIGKILL. ContainerdError when it outlives even that."""
    await _kill(client, key, signal.SIGKILL)
    if not await _reached(client, key, KILL_PATIENCE, Status.STOPPED):
        raise ContainerdError(
            f"{key} did not end within {KILL_PATIENCE:.0f} s of SIGKILL", hint=f"ctr task ls; {key}"
        )


async def remove(client: Client, key: Key, *, force: bool) -> None:
    """Remove a container's task, record and snapshot. ConflictError for one that runs, unless forced."""
    try:
        container = await client.container(key)
    except NotFoundError:
        return
    task: Task | None = await client.task(key)
    if task is not None and task.status.live:
        if not force:
            raise ConflictError(f"container {key.id} is running", hint=f"ctrport stop {key.id}, or rm -f")
        await _end_restarts(client, container)
        await kill(client, key)
    if task is not None:
        await _delete(client, key)
    await client.delete_container(key)


async def _delete(client: Client, key: Key) -> None:
    """Delete an ended task. What it wrote and nobody reads, as its `run` in the foreground was killed, is lost.

    Its shim waits for a reader: 2 s with containerd 1.6 and 1.7, with 2.1 until the call's deadline.
    """
    try:
        await client.delete_task(key)
    except ContainerdError:
        with ExitStack() as pipes:
            for path in await client.outputs(key):
                pipes.enter_context(_discarded(path))
            await client.delete_task(key)


@contextmanager
def _discarded(path: str) -> Iterator[None]:
    """Read a named pipe to its end; what is none is left alone."""
    try:
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield
        return
    loop = asyncio.get_running_loop()
    try:
        if stat.S_ISFIFO(os.fstat(source).st_mode):
            loop.add_reader(source, lambda: os.read(source, PIPE_SIZE) or loop.remove_reader(source))
        yield
    finally:
        loop.remove_reader(source)
        os.close(source)


async def _end_restarts(client: Client, container: Container) -> None:
    if RESTART_STATUS in container.labels:
        await client.set_labels(container.key, {RESTART_STATUS: "stopped", RESTART_STOPPED: "true"})


async def _kill(client: Client, key: Key, number: int) -> None:
    try:
        await client.kill(key, number)
    except NotFoundError:  # it ended while we looked
        return
    except ContainerdError:
        # Its shim may have ended while it was asked: "ttrpc: closed" is all that containerd knows for a moment.
        if not await ends(client, key, within=SHIM_PATIENCE):
            raise


async def _reached(client: Client, key: Key, patience: float, status: Status | None) -> bool:
    """Wait until a task has a status or is gone; None waits for the latter alone."""
    try:
        async with asyncio.timeout(patience):
            while True:
                task = await client.task(key)
                if task is None or task.status is status:
                    return True
                await asyncio.sleep(POLL)
    except TimeoutError:
        return False
