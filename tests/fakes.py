"""A containerd without containers: the real wire over a unix socket, records and tasks in dictionaries."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from ctrport.containerd import cri, decode
from ctrport.containerd.methods import METHODS
from ctrport.containerd.pb import api_pb2 as api
from ctrport.containerd.pb import events_pb2 as ev
from ctrport.containerd.rpc import grpc  # from there, as its environment is set before the import
from ctrport.model.annotations import CRI_KIND
from ctrport.model.workload import Key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PIDS = 1 << 23  # no process has such a number, which the kernel ends at 1 << 22


def spec(annotations: dict[str, Any] | None = None, *, netns: str | None = "") -> dict[str, Any]:
    """Give an OCI spec; netns "" is a namespace of its own, None the host's, else a path that is joined."""
    entries = [] if netns is None else [{"type": "network"} | ({"path": netns} if netns else {})]
    return {"annotations": annotations or {}, "linux": {"namespaces": [{"type": "pid"}, *entries]}}


def sandbox_metadata(publish: str | None = None, *, name: str = "web", **config: Any) -> dict[str, Any]:
    """Give what the CRI plugin keeps of a pod, zero values left out; `config` goes over its configuration."""
    made = {
        "metadata": {"name": name, "uid": "3f1c", "namespace": "shop"},
        "hostname": name,
        "annotations": {} if publish is None else {"ctrport.io/publish": publish},
        "linux": {"security_context": {"namespace_options": {"pid": 1}}},
    }
    metadata = {"ID": "c4f", "Name": f"{name}_shop_3f1c_0", "Config": {**made, **config}, "IP": "198.51.100.2"}
    return {"Version": "v1", "Metadata": {**metadata, "NetNSPath": "/var/run/netns/cni-1", "RuntimeHandler": ""}}


def sandbox(metadata: dict[str, Any] | bytes) -> dict[str, Any]:
    """Give the fields of a pause container's record."""
    value = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    # Without the prefix that protobuf's own Any wants, as containerd has it.
    extension = AnyMessage(type_url="github.com/containerd/cri/pkg/store/sandbox/Metadata", value=value)
    return {"labels": {CRI_KIND: "sandbox"}, "extensions": {cri.METADATA: extension}}


class FakeContainerd:
    """Serves `METHODS`, "Tasks/Get" by `tasks_get`. By that name: `fail` is a status code to answer with,
    `delay` seconds to wait first, `calls` counts.
    """

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.records: dict[Key, api.Container] = {}
        self.processes: dict[Key, api.Process] = {}
        self.images: dict[str, api.Image] = {}
        self.content: dict[str, bytes] = {}
        self.snapshots: set[tuple[str, str]] = set()
        self.fail: dict[str, grpc.StatusCode] = {}
        self.delay: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.silent: set[str] = set()  # containers about whose tasks there is no answer, whatever comes
        self.clock = 0  # seconds that its clock is ahead of this machine's
        self.swallow_events = 0  # so many next subscriptions never become live
        self._subscribers: set[asyncio.Queue[ev.Envelope | None]] = set()
        self._pid = PIDS

    async def __aenter__(self) -> Self:
        await self.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_server()

    async def start_server(self) -> None:
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self._server.add_insecure_port(f"unix:{self.address}")
        await self._server.start()

    async def stop_server(self) -> None:
        self.drop_streams()
        await self._server.stop(0)

    def add(self, key: Key, oci: dict[str, Any] | None = None, **fields: Any) -> Key:
        """Create a container, with `spec()` unless `oci` is given."""
        created_at = _now()
        created_at.seconds += self.clock
        record = api.Container(id=key.id, snapshotter="fake", snapshot_key=key.id, created_at=created_at, **fields)
        value = json.dumps(spec() if oci is None else oci).encode()
        record.spec.CopyFrom(AnyMessage(type_url=decode.SPEC_TYPE, value=value))
        self.records[key] = record
        self.snapshots.add(("fake", key.id))
        self.emit("/containers/create", key.namespace, ev.ContainerCreate(id=key.id))
        return key

    def start(self, key: Key, *, pid: int | None = None) -> int:
        """Start the container's task: a process that is there, else one that nobody finds; give its pid."""
        self._pid += 1
        pid = pid or self._pid
        self.processes[key] = api.Process(id=key.id, pid=pid, status=api.RUNNING)
        self.emit("/tasks/start", key.namespace, ev.TaskStart(container_id=key.id, pid=pid))
        return pid

    def exit(self, key: Key, status: int = 0, *, exec_id: str | None = None) -> None:
        """End the container's own process, or an exec'ed one."""
        if exec_id is None:
            self.processes[key].MergeFrom(api.Process(status=api.STOPPED, exit_status=status))
        payload = ev.TaskExit(container_id=key.id, id=exec_id or key.id, exit_status=status)
        self.emit("/tasks/exit", key.namespace, payload)

    def delete(self, key: Key) -> None:
        """Delete what there is of task and container."""
        if self.processes.pop(key, None):
            self.emit("/tasks/delete", key.namespace, ev.TaskDelete(container_id=key.id))
        del self.records[key]
        self.emit("/containers/delete", key.namespace, ev.ContainerDelete(id=key.id))

    def emit(self, topic: str, namespace: str, payload: Any) -> None:
        """Send an event to every subscriber that asked for its topic."""
        name = f"containerd.events.{payload.DESCRIPTOR.name}"
        event = AnyMessage(type_url=name, value=payload.SerializeToString())
        self._send(ev.Envelope(timestamp=_now(), namespace=namespace, topic=topic, event=event))

    def drop_streams(self) -> None:
        """End every subscription, as containerd does when it stops."""
        for queue in self._subscribers:
            queue.put_nowait(None)

    async def containers_get(self, request: Any, namespace: str) -> Any:
        return api.GetContainerResponse(container=self.records[Key(namespace, request.id)])

    async def containers_liststream(self, request: Any, namespace: str) -> AsyncIterator[Any]:
        for key, record in list(self.records.items()):
            if key.namespace == namespace and (not request.filters or f"id=={key.id}" in request.filters):
                yield api.ListContainersItem(container=record)

    async def containers_update(self, request: Any, namespace: str) -> Any:
        key = Key(namespace, request.container.id)
        record = self.records[key]
        for path in request.update_mask.paths:
            field, _, name = path.partition(".")
            if field == "labels" and not request.container.labels[name]:
                record.labels.pop(name, None)
            elif field == "labels":
                record.labels[name] = request.container.labels[name]
            elif field == "extensions":
                record.extensions[name].CopyFrom(request.container.extensions[name])
            elif path == "spec":
                record.spec.CopyFrom(request.container.spec)
        self.emit("/containers/update", namespace, ev.ContainerUpdate(id=key.id, labels=record.labels))
        return api.UpdateContainerResponse(container=record)

    async def containers_delete(self, request: Any, namespace: str) -> Any:
        self.delete(Key(namespace, request.id))
        return Empty()

    async def tasks_get(self, request: Any, namespace: str) -> Any:
        if request.container_id in self.silent:
            await asyncio.Event().wait()
        return api.GetTaskResponse(process=self.processes[Key(namespace, request.container_id)])

    async def tasks_list(self, _request: Any, namespace: str) -> Any:
        tasks = [p for key, p in self.processes.items() if key.namespace == namespace and key.id not in self.silent]
        return api.ListTasksResponse(tasks=tasks)

    async def tasks_kill(self, request: Any, namespace: str) -> Any:
        key = Key(namespace, request.container_id)
        if self.processes[key].status == api.STOPPED:
            raise KeyError(key)
        self.exit(key, 128 + request.signal)
        return Empty()

    async def tasks_delete(self, request: Any, namespace: str) -> Any:
        key = Key(namespace, request.container_id)
        status = self.processes.pop(key).exit_status
        self.emit("/tasks/delete", namespace, ev.TaskDelete(container_id=key.id))
        return api.DeleteTaskResponse(id=key.id, exit_status=status)

    async def namespaces_list(self, _request: Any, _namespace: str) -> Any:
        names = {"default"} | {key.namespace for key in self.records}
        return api.ListNamespacesResponse(namespaces=[api.Namespace(name=name) for name in names])

    async def version_version(self, _request: Any, _namespace: str) -> Any:
        return api.VersionResponse(version="1.6.20-fake")

    async def images_get(self, request: Any, _namespace: str) -> Any:
        return api.GetImageResponse(image=self.images[request.name])

    async def content_read(self, request: Any, _namespace: str) -> AsyncIterator[Any]:
        data = self.content[request.digest]
        for offset in range(0, len(data), 16):
            yield api.ReadContentResponse(offset=offset, data=data[offset : offset + 16])

    async def snapshots_remove(self, request: Any, _namespace: str) -> Any:
        self.snapshots.remove((request.snapshotter, request.key))
        return Empty()

    async def events_publish(self, request: Any, namespace: str) -> Any:
        self._send(ev.Envelope(timestamp=_now(), namespace=namespace, topic=request.topic, event=request.event))
        return Empty()

    async def events_subscribe(self, request: Any, _namespace: str) -> AsyncIterator[Any]:
        queue: asyncio.Queue[ev.Envelope | None] = asyncio.Queue()
        if self.swallow_events == 0:
            self._subscribers.add(queue)
        self.swallow_events = max(0, self.swallow_events - 1)
        try:
            while envelope := await queue.get():
                if not request.filters or f'topic=="{envelope.topic}"' in request.filters:
                    yield envelope
        finally:
            self._subscribers.discard(queue)

    def _send(self, envelope: ev.Envelope) -> None:
        for queue in self._subscribers:
            queue.put_nowait(envelope)

    async def enter(self, name: str, context: Any) -> str:
        """Count, wait or fail as the test asked; give the call's containerd namespace."""
        self.calls[name] += 1
        await asyncio.sleep(self.delay.get(name, 0))
        if name in self.fail:
            await context.abort(self.fail[name], "as the test asked")
        namespace: str = dict(context.invocation_metadata()).get("containerd-namespace", "")
        if not namespace and name not in {"events_subscribe", "version_version", "namespaces_list"}:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "namespace is required")
        return namespace


class _Handlers(grpc.GenericRpcHandler):
    """Dispatches by the client's own table of methods; a KeyError in a handler is NOT_FOUND."""

    def __init__(self, fake: FakeContainerd) -> None:
        self._fake = fake
        self._methods = {method.path: method for method in METHODS}

    def service(self, handler_call_details: Any) -> Any:
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        name = method.name.lower().replace("/", "_")
        handler = getattr(self._fake, name)

        async def unary(request: Any, context: Any) -> Any:
            try:
                return await handler(request, await self._fake.enter(name, context))
            except KeyError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"{error.args[0]}: not found")

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for response in handler(request, await self._fake.enter(name, context)):
                    yield response
            except KeyError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"{error.args[0]}: not found")

        codec = (method.request.FromString, method.response.SerializeToString)
        if method.stream:
            return grpc.unary_stream_rpc_method_handler(stream, *codec)
        return grpc.unary_unary_rpc_method_handler(unary, *codec)


def _now() -> Timestamp:
    seconds, nanos = divmod(time.time_ns(), 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)
