"""Decoding containerd's messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st

from ctrport.containerd import decode
from ctrport.containerd.pb import api_pb2 as api
from ctrport.containerd.pb import events_pb2 as ev
from ctrport.model.workload import Container, Key, Status, Task


def record(spec: Any = None, *, raw: bytes | None = None) -> api.Container:
    value = json.dumps(spec).encode() if raw is None else raw
    return api.Container(id="web", spec=AnyMessage(type_url=decode.SPEC_TYPE, value=value))


def envelope(topic: str, payload: Any, prefix: str = "", name: str | None = None) -> ev.Envelope:
    type_url = f"{prefix}containerd.events.{name or payload.DESCRIPTOR.name}"
    return ev.Envelope(
        topic=topic,
        namespace="n",
        timestamp={"seconds": 1, "nanos": 5},
        event=AnyMessage(type_url=type_url, value=payload.SerializeToString()),
    )


def test_container():
    """A whole record becomes a whole container."""
    message = record(
        {
            "annotations": {"ctrport.io/publish": "8080:80"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}]},
        }
    )
    message.image = "img"
    message.labels["l"] = "v"
    message.snapshotter, message.snapshot_key = "overlayfs", "k"
    message.created_at.seconds, message.created_at.nanos = 2, 7
    message.extensions["e"].value = b"payload"
    assert decode.container("n", message) == Container(
        key=Key("n", "web"),
        created_at=2_000_000_007,
        image="img",
        labels={"l": "v"},
        annotations={"ctrport.io/publish": "8080:80"},
        extensions={"e": b"payload"},
        netns="/run/netns/a",
        host_network=False,
        snapshotter="overlayfs",
        snapshot_key="k",
    )


def test_empty_extension_is_removed():
    """An extension without payload is none (containerd cannot remove one), and looking makes none."""
    message = record({})
    message.extensions["gone"].type_url = "t"
    assert decode.container("n", message).extensions == {}
    assert list(message.extensions) == ["gone"]


@pytest.mark.parametrize(
    ("namespaces", "expected"),
    [
        ([{"type": "network"}], (None, False)),
        ([{"type": "network", "path": ""}], (None, False)),
        ([{"type": "network", "path": "/proc/1/ns/net"}], ("/proc/1/ns/net", False)),
        ([{"type": "pid"}], (None, True)),
        ([], (None, True)),
        (None, (None, True)),
        ("nonsense", (None, True)),
        ([None, 3, {"type": "network", "path": 3}], (None, False)),
    ],
)
def test_network_namespace(namespaces: Any, expected: tuple[str | None, bool]):
    """No entry is the host's namespace, no path a new one, a path one that is joined."""
    found = decode.container("n", record({"linux": {"namespaces": namespaces}}))
    assert (found.netns, found.host_network) == expected


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_malformed_spec(raw: bytes):
    """A spec that is no JSON object gives a container that asks for nothing."""
    assert decode.container("n", record(raw=raw)) == Container(key=Key("n", "web"), created_at=0)


def test_foreign_spec():
    """A spec of another type (Windows' job containers, say) is not read."""
    message = record({"annotations": {"a": "b"}})
    message.spec.type_url = "something.else/Spec"
    assert decode.container("n", message).annotations == {}


def test_annotations_are_text():
    """Annotations that are not text are dropped, the others stay."""
    found = decode.container("n", record({"annotations": {"a": "b", "c": 1, "d": None, "e": {"f": "g"}}}))
    assert found.annotations == {"a": "b"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["annotations", "linux", "namespaces", "type", "network", "path"]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_spec(spec: Any):
    """No JSON in a spec's place raises."""
    found = decode.container("n", record(spec))
    assert all(isinstance(value, str) for value in found.annotations.values())


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (api.UNKNOWN, Status.UNKNOWN),
        (api.CREATED, Status.CREATED),
        (api.RUNNING, Status.RUNNING),
        (api.STOPPED, Status.STOPPED),
        (api.PAUSED, Status.PAUSED),
        (api.PAUSING, Status.PAUSING),
        (77, Status.UNKNOWN),
    ],
)
def test_task(status: int, expected: Status):
    """Every status has its word; one that does not exist yet is unknown."""
    process = api.Process(id="web", pid=5, status=status, exit_status=3)
    assert decode.task(process) == Task(pid=5, status=expected, exit_status=3)


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
@pytest.mark.parametrize(
    ("topic", "payload", "exec_id"),
    [
        ("/tasks/start", ev.TaskStart(container_id="web", pid=4), None),
        ("/tasks/exit", ev.TaskExit(container_id="web", id="web"), None),
        ("/tasks/exit", ev.TaskExit(container_id="web", id="probe"), "probe"),
        ("/tasks/delete", ev.TaskDelete(container_id="web"), None),
        ("/tasks/delete", ev.TaskDelete(container_id="web", id="probe"), "probe"),
        ("/tasks/paused", ev.TaskPaused(container_id="web"), None),
        ("/tasks/resumed", ev.TaskResumed(container_id="web"), None),
        ("/containers/create", ev.ContainerCreate(id="web"), None),
        ("/containers/update", ev.ContainerUpdate(id="web", labels={"a": "b"}), None),
        ("/containers/delete", ev.ContainerDelete(id="web"), None),
    ],
)
def test_event(prefix: str, topic: str, payload: Any, exec_id: str | None):
    """Every event names its container, with and without protobuf's type prefix."""
    event = decode.event(envelope(topic, payload, prefix))
    pid = 4 if topic == "/tasks/start" else None
    assert event == decode.Event(
        topic=topic, namespace="n", container_id="web", exec_id=exec_id, pid=pid, timestamp=1_000_000_005
    )
    assert event.key == Key("n", "web")


def test_unknown_events():
    """Unknown types, and bytes that are not of the type, are no events."""
    start = ev.TaskStart(container_id="web")
    assert decode.event(envelope("/tasks/start", start, name="TaskOOM")) is None
    broken = envelope("/tasks/start", start)
    broken.event.value = b"\x0a\xff"
    assert decode.event(broken) is None
    assert decode.event(ev.Envelope()) is None
