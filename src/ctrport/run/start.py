"""`ctrport start`: the task of a container that `ctrport run` made and that has ended, begun again."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.errors import ConflictError, CtrportError, HostError, InputError
from ctrport.model.words import NETWORK
from ctrport.model.workload import Status
from ctrport.network import files, netns
from ctrport.run import task
from ctrport.run.translate import RESTART_POLICY, RESTART_STATUS, RESTART_STOPPED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrport.config import Settings
    from ctrport.containerd.client import Client
    from ctrport.control import Writer
    from ctrport.model.workload import Container, Key


async def start(settings: Settings, client: Client, link: Writer, key: Key) -> bool:
    """Start a container, detached, at its address and with its ports; says whether there was need to.

    ConflictError for a port that somebody has taken meanwhile; the container runs all the same.
    """
    container = await client.container(key)
    where = files.directory(settings.root, key)
    if not where.exists():  # `ctr run --cni` of another would come back without an address
        raise InputError(
            f"container {key.id} was not made by ctrport run",
            hint=f"ctr -n {key.namespace} tasks start -d {key.id}",
        )
    last = await client.task(key)
    if last is not None and last.status.live:
        return False
    if last is not None and last.status is not Status.STOPPED:
        raise ConflictError(f"container {key.id} is being started", hint=f"ctr -n {key.namespace} tasks ls")
    await _connect(link, container)
    if last is not None:
        await client.delete_task(key)
    await _start_task(client, link, container, where)
    (entry,) = (await link.call("converge", containers=[list(key)]))["containers"]
    if lost := [m for m in entry["mappings"] if m["state"] != "active"]:
        reasons = "; ".join(f"container port {m['container_port']}: {m['reason']}" for m in lost[:5])
        raise ConflictError(f"container {key.id} runs, but not with all of its ports: {reasons}")
    return True


async def _start_task(client: Client, link: Writer, container: Container, where: Path) -> None:
    """Start the task, out of reach of containerd's restart monitor, which knows the container by its status label.

    By a label that says `stopped` the monitor would end the task that we start, by `running` start one of its own.
    """
    key = container.key
    status = {name: container.labels.get(name, "") for name in (RESTART_STATUS, RESTART_STOPPED)}
    has_policy = RESTART_POLICY in container.labels or bool(status[RESTART_STATUS])
    if has_policy:
        await client.set_labels(key, dict.fromkeys(status, ""))
    terminal = bool((await client.spec(key)).get("process", {}).get("terminal"))
    async with AsyncExitStack() as undo:
        undo.push_async_callback(_take_back, client, key, status if has_policy else {})
        await task.start_detached(link, key, where, terminal=terminal)
        undo.pop_all()
    if has_policy:
        await client.set_labels(key, {RESTART_STATUS: "running"})


async def _take_back(client: Client, key: Key, labels: Mapping[str, str]) -> None:
    """Remove a task that could not be started, and put the labels back that it had."""
    with suppress(CtrportError):
        await client.delete_task(key)
    with suppress(CtrportError):
        await client.set_labels(key, labels)


async def _connect(link: Writer, container: Container) -> None:
    """See to it that a container's namespace is there: a reboot takes it, and a full pass makes it again."""
    if NETWORK in container.annotations:
        await link.call("resync")
    path = container.netns
    if path is None:
        return
    # The process of a shared network has ended by now, and its number may be another's.
    if path.startswith("/proc/") or not netns.is_mounted(Path(path)):
        raise HostError(
            f"container {container.key.id} cannot be started: its network namespace {path!a} is gone",
            hint="ctrport rm, and run it anew",
        )
