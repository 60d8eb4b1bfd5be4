"""What ctrport asks of containerd, in the words of the model.

Every method is one or a few calls with a deadline each. All of them raise ContainerdError when containerd
cannot be reached or refuses, NotFoundError (where a docstring says so) when the container or task does not
exist, and HostError when this user may not open the socket.
"""

from __future__ import annotations

import json
import math
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from ctrport.containerd import cri, decode, image, methods
from ctrport.containerd.pb import api_pb2 as api
from ctrport.containerd.rpc import Rpc
from ctrport.errors import ContainerdError, NotFoundError
from ctrport.model.annotations import CRI_KIND, CRI_NAMESPACE, exposed_ports

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ctrport.model.annotations import Exposed
    from ctrport.model.workload import Container, Key, Task

# Seconds for runc to make a container, and for it to start one: a busy disk takes long. Both, and the two questions
# before them, together are less than what a command waits for the watcher (control.PATIENCE).
START_TIMEOUT = 25.0


class Client:
    """A connection to one containerd; opened by the first call. `async with` closes it.

    `address` is the socket's path, with or without `unix://`; `timeout` the deadline of each call in seconds.
    """

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        self.rpc = Rpc(address, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.rpc.close()

    # --- containerd ---

    async def version(self) -> str:
        """Give containerd's version in its own words, such as "1.6.20~ds1"."""
        answer = await self.rpc.unary(methods.VERSION, Empty(), "ask for the version")
        return answer.version

    async def namespaces(self) -> list[str]:
        """Give the names of containerd's namespaces, sorted."""
        answer = await self.rpc.unary(methods.LIST_NAMESPACES, api.ListNamespacesRequest(), "list the namespaces")
        return sorted(namespace.name for namespace in answer.namespaces)

    # --- container records ---

    async def container(self, key: Key) -> Container:
        """Give a container. Raises NotFoundError."""
        return decode.container(key.namespace, await self._record(key))

    async def pod(self, name: str) -> Container:
        """Give the pause container of a pod, NAMESPACE/NAME: of its last sandbox. Raises NotFoundError."""
        found = await self.containers(CRI_NAMESPACE, f'labels."{CRI_KIND}"=={cri.SANDBOX}')
        sandboxes = [each for each in found if each.name == name]
        if not sandboxes:
            raise NotFoundError(f"there is no pod {name}", hint=f"ctrport -n {CRI_NAMESPACE} ps -a")
        return max(sandboxes, key=lambda each: each.created_at)

    async def containers(self, namespace: str, *filters: str) -> list[Container]:
        """Give the containers of a namespace that match any of the filters; all when there are none.

        Filters are containerd's: `id==web`, `labels."a.b/c"==x`; a comma inside one means "and".
        """
        request = api.ListContainersRequest(filters=filters)
        what = f"list the containers of namespace {namespace}"
        found = []
        async with aclosing(self.rpc.stream(methods.LIST_CONTAINERS, request, what, namespace=namespace)) as items:
            async for item in items:
                found.append(decode.container(namespace, item.container))  # noqa: PERF401  # reads better
        return found

    async def set_labels(self, key: Key, labels: Mapping[str, str]) -> None:
        """Set these labels and leave the others; an empty value removes one. Raises NotFoundError.

        containerd limits a label to 4096 bytes, name and value together.
        """
        record = api.Container(id=key.id, labels=labels)
        await self._update(key, record, [f"labels.{name}" for name in labels], "label")

    async def extension(self, key: Key, name: str) -> bytes | None:
        """Give an extension's payload; None when it is not set. Raises NotFoundError."""
        record = await self._record(key)
        value = record.extensions[name].value if name in record.extensions else b""
        return value or None

    async def set_extension(self, key: Key, name: str, type_url: str, value: bytes) -> None:
        """Set one extension and leave the others; an empty value counts as removed. Raises NotFoundError."""
        record = api.Container(id=key.id, extensions={name: AnyMessage(type_url=type_url, value=value)})
        await self._update(key, record, [f"extensions.{name}"], f"set extension {name} of")

    async def spec(self, key: Key) -> dict[str, Any]:
        """Give the OCI runtime spec. Raises NotFoundError; ContainerdError when it is not one."""
        spec = decode.load_spec((await self._record(key)).spec)
        if spec is None:
            raise ContainerdError(f"container {key} has no OCI runtime spec that can be read")
        return spec

    async def set_spec(self, key: Key, spec: Mapping[str, Any]) -> None:
        """Replace the OCI runtime spec; a running task keeps the old one. Raises NotFoundError."""
        value = AnyMessage(type_url=decode.SPEC_TYPE, value=json.dumps(spec).encode())
        await self._update(key, api.Container(id=key.id, spec=value), ["spec"], "set the spec of")

    async def delete_container(self, key: Key) -> None:
        """Delete a container's snapshot and record; nothing happens when they are gone.

        Raises ContainerdError while it has a task: containerd itself would delete the record under it.
        """
        what = f"delete container {key}"
        try:
            record = await self._record(key)
        except NotFoundError:
            return
        if await self.task(key) is not None:
            raise ContainerdError(f"cannot {what}: it has a task", hint="kill and delete its task first")
        # The record last: as long as it is there, a second attempt finds the snapshot's name.
        if record.snapshotter and record.snapshot_key:
            snapshot = api.RemoveSnapshotRequest(snapshotter=record.snapshotter, key=record.snapshot_key)
            with suppress(NotFoundError):
                await self.rpc.unary(methods.REMOVE_SNAPSHOT, snapshot, what, namespace=key.namespace)
        request = api.DeleteContainerRequest(id=key.id)
        with suppress(NotFoundError):
            await self.rpc.unary(methods.DELETE_CONTAINER, request, what, namespace=key.namespace)

    async def root_directories(self, key: Key) -> list[Path]:
        """Give the directories of this host that make up a container's root filesystem, the topmost first.

        Empty when its snapshotter gives none (a block device).
        """
        return [path for mount in await self._mounts(key) for path in decode.mount_directories(mount)]

    # --- tasks ---

    async def task(self, key: Key) -> Task | None:
        """Give a container's task; None when it has none (or when there is no such container)."""
        process = await self._process(key)
        return None if process is None else decode.task(process)

    async def outputs(self, key: Key) -> tuple[str, ...]:
        """Give where a task writes to, paths or URIs; nothing when there is no task."""
        process = await self._process(key)
        return () if process is None else tuple(filter(None, (process.stdout, process.stderr)))

    async def tasks(self, namespace: str) -> dict[str, Task]:
        """Give the tasks of a namespace by container id. containerd asks every shim: 50 take 16 ms."""
        what = f"list the tasks of namespace {namespace}"
        answer = await self.rpc.unary(methods.LIST_TASKS, api.ListTasksRequest(), what, namespace=namespace)
        return {process.id: decode.task(process) for process in answer.tasks}

    async def start_task(
        self, key: Key, *, stdin: str = "", stdout: str = "", stderr: str = "", terminal: bool = False
    ) -> int:
        """Create a container's task and start it; give its pid.

        The streams are paths of named pipes with somebody at their other ends, or `file:///...`; none when empty.
        Raises NotFoundError. When it raises, there may be a task that has to be deleted.
        """
        request = api.CreateTaskRequest(
            container_id=key.id,
            rootfs=await self._mounts(key),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
        )
        what, timeout = f"start container {key.id}", max(START_TIMEOUT, self.rpc.timeout)
        await self.rpc.unary(methods.CREATE_TASK, request, what, namespace=key.namespace, timeout=timeout)
        start = api.StartRequest(container_id=key.id)
        answer = await self.rpc.unary(methods.START_TASK, start, what, namespace=key.namespace, timeout=timeout)
        return answer.pid

    async def wait(self, key: Key) -> int:
        """Wait, however long, until the task's first process has ended; give its exit status.

        Raises NotFoundError when there is no task, ContainerdError when containerd goes away meanwhile.
        """
        request = api.WaitRequest(container_id=key.id)
        what = f"wait for {key}"
        answer = await self.rpc.unary(methods.WAIT_TASK, request, what, namespace=key.namespace, timeout=math.inf)
        return answer.exit_status

    async def close_stdin(self, key: Key) -> None:
        """End a task's standard input, once what is on the way has been read. Raises NotFoundError."""
        request = api.CloseIORequest(container_id=key.id, stdin=True)
        await self.rpc.unary(methods.CLOSE_IO, request, f"end the input of {key}", namespace=key.namespace)

    async def resize(self, key: Key, size: os.terminal_size) -> None:
        """Tell a task the size of its terminal. Raises NotFoundError."""
        request = api.ResizePtyRequest(container_id=key.id, width=size.columns, height=size.lines)
        what = f"set the size of the terminal of {key}"
        await self.rpc.unary(methods.RESIZE_PTY, request, what, namespace=key.namespace)

    async def kill(self, key: Key, signal: int, *, all_processes: bool = False) -> None:
        """Send a signal to the task's first process or all of them.

        Raises NotFoundError when there is no task, or its process has ended already.
        """
        request = api.KillRequest(container_id=key.id, signal=signal, all=all_processes)
        await self.rpc.unary(methods.KILL_TASK, request, f"send signal {signal} to {key}", namespace=key.namespace)

    async def delete_task(self, key: Key) -> int | None:
        """Delete a stopped task; give its exit status, None when there was none.

        Raises ContainerdError while its process runs.
        """
        request = api.DeleteTaskRequest(container_id=key.id)
        try:
            answer = await self.rpc.unary(
                methods.DELETE_TASK, request, f"delete the task of {key}", namespace=key.namespace
            )
        except NotFoundError:
            return None
        return answer.exit_status

    # --- images ---

    async def image_config(self, namespace: str, ref: str) -> dict[str, Any] | None:
        """Give the OCI image config for this machine; None when there is no image of that name.

        Raises NotFoundError when the image is there without content for this machine's architecture.
        """
        return await image.config(self.rpc, namespace, ref)

    async def exposed_ports(self, container: Container) -> Exposed | None:
        """Give the ports that a container's image exposes; None when it is of no image, or the image is gone."""
        if not container.image:
            return None
        try:
            config = await self.image_config(container.key.namespace, container.image)
        except NotFoundError:
            return None
        return None if config is None else exposed_ports(config)

    # ---

    async def _record(self, key: Key) -> api.Container:
        request = api.GetContainerRequest(id=key.id)
        answer = await self.rpc.unary(
            methods.GET_CONTAINER, request, f"look at container {key}", namespace=key.namespace
        )
        return answer.container

    async def _process(self, key: Key) -> api.Process | None:
        request = api.GetTaskRequest(container_id=key.id)
        what = f"look at the task of {key}"
        try:
            answer = await self.rpc.unary(methods.GET_TASK, request, what, namespace=key.namespace)
        except NotFoundError:
            return None
        return answer.process

    async def _mounts(self, key: Key) -> Sequence[api.Mount]:
        """Give what makes up a container's root filesystem; nothing when it is a directory of the host."""
        record = await self._record(key)
        if not record.snapshot_key:
            return ()
        request = api.SnapshotMountsRequest(snapshotter=record.snapshotter, key=record.snapshot_key)
        what = f"find the root filesystem of {key}"
        answer = await self.rpc.unary(methods.SNAPSHOT_MOUNTS, request, what, namespace=key.namespace)
        return answer.mounts

    async def _update(self, key: Key, record: api.Container, paths: list[str], verb: str) -> None:
        if not paths:
            return  # an empty mask would replace the whole record
        request = api.UpdateContainerRequest(container=record, update_mask=FieldMask(paths=paths))
        await self.rpc.unary(methods.UPDATE_CONTAINER, request, f"{verb} container {key}", namespace=key.namespace)
