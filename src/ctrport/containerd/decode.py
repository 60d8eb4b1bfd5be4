"""From containerd's messages to ours: pure, and never failing on what a container's author wrote.

Sources: containerd's api/ (field meanings), the OCI runtime specification, config.md and config-linux.md
(annotations, namespaces).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from ctrport.containerd import cri
from ctrport.containerd.pb import api_pb2 as api
from ctrport.containerd.pb import events_pb2 as ev
from ctrport.model.workload import Container, Key, Status, Task

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.protobuf.timestamp_pb2 import Timestamp

SPEC_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

TASK_START: Final = "/tasks/start"
TASK_EXIT: Final = "/tasks/exit"
TASK_DELETE: Final = "/tasks/delete"
CONTAINER_CREATE: Final = "/containers/create"
CONTAINER_UPDATE: Final = "/containers/update"
CONTAINER_DELETE: Final = "/containers/delete"

_STATUS: Final = {
    api.CREATED: Status.CREATED,
    api.RUNNING: Status.RUNNING,
    api.STOPPED: Status.STOPPED,
    api.PAUSED: Status.PAUSED,
    api.PAUSING: Status.PAUSING,
}

# Type name -> message. containerd sends bare names, so protobuf's own Any.Is and Any.Unpack answer False.
_PAYLOADS: Final[dict[str, type[Any]]] = {
    "containerd.events.TaskStart": ev.TaskStart,
    "containerd.events.TaskExit": ev.TaskExit,
    "containerd.events.TaskDelete": ev.TaskDelete,
    "containerd.events.TaskPaused": ev.TaskPaused,
    "containerd.events.TaskResumed": ev.TaskResumed,
    "containerd.events.ContainerCreate": ev.ContainerCreate,
    "containerd.events.ContainerUpdate": ev.ContainerUpdate,
    "containerd.events.ContainerDelete": ev.ContainerDelete,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a container: a reason to look at it again, and where to look."""

    topic: str
    namespace: str
    container_id: str
    exec_id: str | None = None  # set when a process beside the container's own is meant
    pid: int | None = None  # of a task that has started
    timestamp: int = 0  # nanoseconds since the epoch

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.container_id)


def nanoseconds(timestamp: Timestamp) -> int:
    """Nanoseconds since the epoch; 0 for a time stamp that is not set."""
    return timestamp.seconds * 1_000_000_000 + timestamp.nanos


def container(namespace: str, record: api.Container) -> Container:
    """Decode a container's record.

    A spec that cannot be read gives no annotations and a network namespace of its own: nothing is asked for,
    and no runtime would start such a container.
    """
    spec = load_spec(record.spec)
    netns, host_network = network_namespace(spec)
    labels = dict(record.labels)
    extensions = {name: value.value for name, value in record.extensions.items() if value.value}
    return Container(
        key=Key(namespace, record.id),
        created_at=nanoseconds(record.created_at),
        image=record.image,
        labels=labels,
        annotations=spec_annotations(spec),
        extensions=extensions,
        netns=netns,
        host_network=host_network,
        snapshotter=record.snapshotter,
        snapshot_key=record.snapshot_key,
        sandbox=cri.read(namespace, labels, extensions),
    )


def task(process: api.Process) -> Task:
    """Decode a container's task; a status that containerd may add later is UNKNOWN."""
    return Task(
        pid=process.pid,
        status=_STATUS.get(process.status, Status.UNKNOWN),
        exit_status=process.exit_status,
    )


def load_spec(spec: AnyMessage) -> dict[str, Any] | None:
    """Give the OCI spec, None when there is none or it is not a JSON object."""
    if _type_name(spec) != SPEC_TYPE:
        return None
    try:
        value = json.loads(spec.value)
    except (ValueError, RecursionError):  # ValueError: JSON and UTF-8 both
        return None
    return value if isinstance(value, dict) else None


def spec_annotations(spec: dict[str, Any] | None) -> dict[str, str]:
    """Give the spec's annotations, those that are text as the OCI specification demands."""
    found = (spec or {}).get("annotations")
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def network_namespace(spec: dict[str, Any] | None) -> tuple[str | None, bool]:
    """Give (path of the joined network namespace or None, whether it is the host's).

    OCI config-linux.md, "Namespaces": no entry of the type means the runtime's own namespace, an entry
    without a path a new one.
    """
    if spec is None:
        return None, False
    linux = spec.get("linux")
    entries = linux.get("namespaces") if isinstance(linux, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("type") == "network":
            path = entry.get("path")
            return (path if isinstance(path, str) and path else None), False
    return None, True


def mount_directories(mount: api.Mount) -> list[Path]:
    """Give the directories behind an overlay or bind mount, the topmost first (mount(8), overlay options)."""
    if mount.type == "bind":
        return [Path(mount.source)]
    options = dict(option.partition("=")[::2] for option in mount.options)
    upper, lower = options.get("upperdir", ""), options.get("lowerdir", "")
    return [Path(text) for text in (upper, *lower.split(":")) if text]


def event(envelope: ev.Envelope) -> Event | None:
    """Decode an event; None for a type that is not ours to know, or bytes that are not of it."""
    message_type = _PAYLOADS.get(_type_name(envelope.event))
    if message_type is None:
        return None
    try:
        payload = message_type.FromString(envelope.event.value)
    except DecodeError:
        return None
    if hasattr(payload, "container_id"):
        container_id: str = payload.container_id
        process_id: str = getattr(payload, "id", "")
    else:
        container_id, process_id = payload.id, ""
    return Event(
        topic=envelope.topic,
        namespace=envelope.namespace,
        container_id=container_id,
        exec_id=process_id if process_id not in ("", container_id) else None,
        pid=payload.pid if isinstance(payload, ev.TaskStart) else None,
        timestamp=nanoseconds(envelope.timestamp),
    )


def _type_name(value: AnyMessage) -> str:
    return value.type_url.removeprefix("type.googleapis.com/")
