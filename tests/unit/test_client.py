"""The containerd client against a fake that speaks the real wire."""

from __future__ import annotations

import json
import os
import platform
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.containerd.client import Client
from ctrport.containerd.pb import api_pb2 as api
from ctrport.containerd.rpc import grpc
from ctrport.errors import ContainerdError, HostError, NotFoundError
from ctrport.model.workload import Key, Status, Task
from fakes import FakeContainerd, spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

WEB = Key("default", "web")
GONE = Key("default", "gone")


@asynccontextmanager
async def serve(path: Path, **options: Any) -> AsyncIterator[tuple[FakeContainerd, Client]]:
    async with (
        FakeContainerd(path / "c.sock") as fake,
        Client(f"unix://{fake.address}", **options) as client,
    ):
        yield fake, client


async def test_containers(tmp_path: Path):
    """Records are listed by namespace and by filter, and found by key."""
    async with serve(tmp_path) as (fake, client):
        fake.add(WEB, spec({"a": "b"}, netns=None), image="img", labels={"l": "v"})
        fake.add(Key("default", "db"))
        fake.add(Key("k8s.io", "pod"))
        assert await client.version() == "1.6.20-fake"
        assert await client.namespaces() == ["default", "k8s.io"]
        found = await client.container(WEB)
        assert (found.key, found.image, found.labels) == (WEB, "img", {"l": "v"})
        assert (found.annotations, found.host_network) == ({"a": "b"}, True)
        assert [container.key.id for container in await client.containers("default")] == ["web", "db"]
        assert await client.containers("default", "id==web") == [found]
        assert await client.containers("nowhere") == []


async def test_tasks(tmp_path: Path):
    """A task is seen, killed and deleted once; afterwards there is none."""
    async with serve(tmp_path) as (fake, client):
        fake.add(WEB)
        fake.add(Key("default", "idle"))
        assert await client.task(WEB) is None
        pid = fake.start(WEB)
        assert await client.task(WEB) == Task(pid=pid, status=Status.RUNNING)
        assert await client.tasks("default") == {"web": Task(pid=pid, status=Status.RUNNING)}
        await client.kill(WEB, 9)
        assert await client.task(WEB) == Task(pid=pid, status=Status.STOPPED, exit_status=137)
        with pytest.raises(NotFoundError, match="cannot send signal 9 to default/web"):
            await client.kill(WEB, 9)
        assert await client.delete_task(WEB) == 137
        assert await client.delete_task(WEB) is None


async def test_updates(tmp_path: Path):
    """Labels, extensions and the spec are set one by one and leave the rest of the record."""
    async with serve(tmp_path) as (fake, client):
        fake.add(WEB, labels={"keep": "k", "a.b/c": "old"})
        await client.set_labels(WEB, {"a.b/c": "new", "keep": ""})
        await client.set_labels(WEB, {})
        assert (await client.container(WEB)).labels == {"a.b/c": "new"}
        assert await client.extension(WEB, "ctrport.io/publish") is None
        await client.set_extension(WEB, "ctrport.io/publish", "t", b"80")
        await client.set_extension(WEB, "other", "t", b"x")
        assert await client.extension(WEB, "ctrport.io/publish") == b"80"
        await client.set_extension(WEB, "ctrport.io/publish", "t", b"")
        assert await client.extension(WEB, "ctrport.io/publish") is None
        assert (await client.container(WEB)).extensions == {"other": b"x"}
        await client.set_spec(WEB, spec({"port": "ü"}))
        assert await client.spec(WEB) == spec({"port": "ü"})
        fake.records[WEB].spec.value = b"{"
        with pytest.raises(ContainerdError, match="no OCI runtime spec"):
            await client.spec(WEB)


async def test_delete_container(tmp_path: Path):
    """A container goes with its snapshot; a second time, or with its snapshot gone, nothing is amiss."""
    async with serve(tmp_path) as (fake, client):
        fake.add(WEB)
        fake.start(WEB)
        with pytest.raises(ContainerdError, match="it has a task"):
            await client.delete_container(WEB)
        assert WEB in fake.records
        fake.exit(WEB)
        await client.delete_task(WEB)
        await client.delete_container(WEB)
        assert (fake.records, fake.snapshots) == ({}, set())
        await client.delete_container(WEB)
        fake.add(WEB)
        fake.snapshots.clear()
        await client.delete_container(WEB)
        assert fake.records == {}


async def test_not_found(tmp_path: Path):
    """What does not exist is NotFoundError, and the message says what was tried, where, and the answer."""
    async with serve(tmp_path) as (fake, client):
        with pytest.raises(NotFoundError) as caught:
            await client.container(GONE)
        expected = f"cannot look at container default/gone: containerd at {fake.address} answered NOT_FOUND: "
        assert caught.value.message.startswith(expected)
        for call in (client.set_labels(GONE, {"a": "b"}), client.spec(GONE), client.extension(GONE, "x")):
            with pytest.raises(NotFoundError):
                await call


def add_image(fake: FakeContainerd, ref: str, *blobs: tuple[str, Any]) -> None:
    """Put an image in place whose target is the first blob."""
    fake.images[ref] = api.Image(name=ref, target=api.Descriptor(digest=blobs[0][0]))
    fake.content |= {digest: json.dumps(blob).encode() for digest, blob in blobs}


async def test_image_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The config is found for this machine: below a manifest, below an index, among several variants."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    arm = {"os": "linux", "architecture": "arm64"}
    config = ("sha256:c", {"config": {"ExposedPorts": {"80/tcp": {}}}})
    manifest = ("sha256:m", {"config": {"digest": "sha256:c"}})
    index = {
        "manifests": [
            {"digest": "sha256:attestation", "platform": {"os": "unknown", "architecture": "unknown"}},
            {"digest": "sha256:amd", "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": "sha256:not-pulled", "platform": arm | {"variant": "v9"}},
            {"digest": "sha256:m", "platform": arm | {"variant": "v8"}},
        ]
    }
    async with serve(tmp_path) as (fake, client):
        assert await client.image_config("default", "nothing") is None
        add_image(fake, "plain", manifest, config)
        assert await client.image_config("default", "plain") == config[1]
        add_image(fake, "index", ("sha256:i", index))
        assert await client.image_config("default", "index") == config[1]
        add_image(fake, "other", ("sha256:o", {"manifests": index["manifests"][:2]}))
        with pytest.raises(NotFoundError, match="no content for arm64"):
            await client.image_config("default", "other")
        add_image(fake, "loop", ("sha256:l", {"manifests": [{"digest": "sha256:l"}]}))
        with pytest.raises(NotFoundError):
            await client.image_config("default", "loop")
        fake.content["sha256:c"] = b"no json"
        with pytest.raises(ContainerdError, match="not JSON"):
            await client.image_config("default", "plain")


async def test_no_socket(tmp_path: Path):
    """A missing or dead socket fails at once, with a hint."""
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    for path, reason in ((tmp_path / "none.sock", "No such file"), (dead, "Connection refused")):
        async with Client(str(path)) as client:
            with pytest.raises(ContainerdError, match=reason) as caught:
                await client.containers("default")
        assert str(path) in caught.value.message
        assert "CONTAINERD_ADDRESS" in caught.value.hint


@contextmanager
def no_root() -> Iterator[None]:
    """Act as nobody where the test runs as root, who may open every socket."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


async def test_no_permission(tmp_path: Path):
    """A socket that this user may not open is a matter of privileges."""
    async with serve(tmp_path) as (fake, client):
        os.chmod(fake.address, 0)  # noqa: PTH101  # an address is text
        with no_root(), pytest.raises(HostError, match="no permission") as caught:
            await client.version()
        assert caught.value.hint == "run as root"


async def test_restart(tmp_path: Path):
    """While containerd is away calls fail at once; when it is back the same client works."""
    async with serve(tmp_path) as (fake, client):
        fake.add(WEB)
        await client.container(WEB)
        await fake.stop_server()
        with pytest.raises(ContainerdError):
            await client.container(WEB)
        await fake.start_server()
        assert (await client.container(WEB)).key == WEB


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (grpc.StatusCode.UNAVAILABLE, "is containerd running?"),
        (grpc.StatusCode.PERMISSION_DENIED, "run as root"),
        (grpc.StatusCode.UNIMPLEMENTED, "is this containerd's socket?"),
        (grpc.StatusCode.INTERNAL, None),
    ],
)
async def test_refusals(tmp_path: Path, code: grpc.StatusCode, hint: str | None):
    """A refusal gives the status code, containerd's words and, where there is one, what mends it."""
    async with serve(tmp_path) as (fake, client):
        fake.fail["containers_liststream"] = code
        with pytest.raises(ContainerdError, match=f"answered {code.name}: as the test asked") as caught:
            await client.containers("default")
        assert hint is None if caught.value.hint is None else caught.value.hint.startswith(hint)


async def test_deadline(tmp_path: Path):
    """A containerd that does not answer is given up after the timeout, in calls and in listings."""
    async with serve(tmp_path, timeout=0.1) as (fake, client):
        await client.version()
        fake.delay = {"tasks_list": 5, "containers_liststream": 5}
        for call in (client.tasks("default"), client.containers("default")):
            with pytest.raises(ContainerdError, match=r"no answer within 0\.1 s"):
                await call


def test_fork_support_is_off():
    """Importing the client tells gRPC to install no fork handlers."""
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
