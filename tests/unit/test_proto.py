"""The checked-in protobuf stubs: they load with old and new runtimes, and their bytes are containerd's."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask

import ctrport.containerd.pb
from ctrport.containerd.methods import METHODS
from ctrport.containerd.pb import api_pb2 as api
from ctrport.containerd.pb import events_pb2 as ev

STUBS = sorted(Path(ctrport.containerd.pb.__path__[0]).glob("*_pb2.py"))

# Bytes written out by hand: tag (field number << 3 | wire type), length, value.
GOLDEN = {
    "container": (
        api.Container(
            id="web",
            labels={"a": "b"},
            image="img",
            runtime=api.Runtime(name="runc"),
            spec=AnyMessage(type_url="t", value=b"{}"),
            snapshotter="ov",
            snapshot_key="k",
            extensions={"e": AnyMessage(value=b"x")},
            sandbox="s",
        ),
        b"\x0a\x03web" + b"\x12\x06\x0a\x01a\x12\x01b" + b"\x1a\x03img" + b"\x22\x06\x0a\x04runc"
        b"\x2a\x07\x0a\x01t\x12\x02{}" + b"\x32\x02ov" + b"\x3a\x01k" + b"\x52\x08\x0a\x01e\x12\x03\x12\x01x"
        b"\x5a\x01s",
    ),
    "created_at": (api.Container(created_at={"seconds": 1, "nanos": 2}), b"\x42\x04\x08\x01\x10\x02"),
    "update": (
        api.UpdateContainerRequest(container=api.Container(id="w"), update_mask=FieldMask(paths=["spec"])),
        b"\x0a\x03\x0a\x01w\x12\x06\x0a\x04spec",
    ),
    "process": (
        api.Process(id="w", pid=300, status=api.PAUSED, stdout="o", stderr="e", terminal=True, exit_status=7),
        b"\x12\x01w\x18\xac\x02\x20\x04\x32\x01o\x3a\x01e\x40\x01\x48\x07",
    ),
    "create task": (
        api.CreateTaskRequest(
            container_id="w",
            rootfs=[api.Mount(type="overlay", source="s", options=["ro"])],
            stdin="i",
            stdout="o",
            stderr="e",
            terminal=True,
        ),
        b"\x0a\x01w" + b"\x1a\x10\x0a\x07overlay\x12\x01s\x22\x02ro" + b"\x22\x01i\x2a\x01o\x32\x01e\x38\x01",
    ),
    "task created": (api.CreateTaskResponse(container_id="w", pid=5), b"\x0a\x01w\x10\x05"),
    "start task": (api.StartRequest(container_id="w"), b"\x0a\x01w"),
    "task started": (api.StartResponse(pid=5), b"\x08\x05"),
    "task ended": (api.WaitResponse(exit_status=137), b"\x08\x89\x01"),
    "close": (api.CloseIORequest(container_id="w", stdin=True), b"\x0a\x01w\x18\x01"),
    "resize": (api.ResizePtyRequest(container_id="w", width=80, height=24), b"\x0a\x01w\x18\x50\x20\x18"),
    "kill": (api.KillRequest(container_id="w", signal=9, all=True), b"\x0a\x01w\x18\x09\x20\x01"),
    "task deleted": (
        api.DeleteTaskResponse(id="w", pid=5, exit_status=137),
        b"\x0a\x01w\x10\x05\x18\x89\x01",
    ),
    "image": (
        api.Image(name="i", target=api.Descriptor(media_type="m", digest="d", size=3)),
        b"\x0a\x01i\x1a\x08\x0a\x01m\x12\x01d\x18\x03",
    ),
    "content": (api.ReadContentResponse(offset=1, data=b"d"), b"\x08\x01\x12\x01d"),
    "snapshot": (api.RemoveSnapshotRequest(snapshotter="o", key="k"), b"\x0a\x01o\x12\x01k"),
    "envelope": (
        ev.Envelope(timestamp={"seconds": 1}, namespace="n", topic="/t", event=AnyMessage(type_url="u")),
        b"\x0a\x02\x08\x01\x12\x01n\x1a\x02/t\x22\x03\x0a\x01u",
    ),
    "exit": (
        ev.TaskExit(container_id="w", id="x", pid=5, exit_status=1),
        b"\x0a\x01w\x12\x01x\x18\x05\x20\x01",
    ),
    "task gone": (ev.TaskDelete(container_id="w", id="x"), b"\x0a\x01w\x2a\x01x"),
    "updated": (ev.ContainerUpdate(id="w", labels={"a": "b"}), b"\x0a\x01w\x1a\x06\x0a\x01a\x12\x01b"),
}


@pytest.mark.parametrize("path", STUBS, ids=lambda path: path.name)
def test_no_version_gate(path: Path):
    """A stub has no gate that refuses the runtime of Debian 12 (protobuf 4.21)."""
    text = path.read_text()
    assert "runtime_version" not in text
    assert "ValidateProtobufRuntimeVersion" not in text


def test_stubs_exist():
    """The test above looked at both files."""
    assert [path.name for path in STUBS] == ["api_pb2.py", "events_pb2.py"]


@pytest.mark.parametrize("name", GOLDEN)
def test_wire(name: str):
    """A message is the bytes that containerd writes and reads, in both directions."""
    message, wire = GOLDEN[name]
    assert message.SerializeToString(deterministic=True) == wire
    assert type(message).FromString(wire) == message


def test_unknown_fields():
    """Fields that a newer containerd adds are skipped."""
    assert api.Process.FromString(b"\x18\x05\xf2\x07\x03new").pid == 5


def test_names_are_our_own():
    """No message has a name of containerd's, so that somebody else's stubs load beside ours."""
    files = {api.DESCRIPTOR, ev.DESCRIPTOR}
    assert {file.package for file in files} == {"ctrport.containerd.pb"}
    assert all(file.name.startswith("ctrport/containerd/pb/") for file in files)


def test_methods_are_distinct():
    """Every path stands once in the table of methods, and is a whole path."""
    paths = [method.path for method in METHODS]
    assert len(set(paths)) == len(paths)
    assert all(path.startswith("/containerd.services.") and path.count("/") == 2 for path in paths)
