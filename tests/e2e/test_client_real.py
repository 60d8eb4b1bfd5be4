"""The containerd client and the event watch against a real containerd."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.containerd.client import Client
from ctrport.containerd.decode import Event
from ctrport.containerd.events import Marker, Watch
from ctrport.errors import ContainerdError, NotFoundError
from ctrport.model.workload import Key, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXTENSION = "ctrport.io/publish"


async def remove(client: Client, key: Key) -> None:
    """Take a container away, whatever state it is in."""
    with suppress(NotFoundError):
        await client.kill(key, signal.SIGKILL)
    await stopped(client, key)
    await client.delete_task(key)
    await client.delete_container(key)


async def stopped(client: Client, key: Key) -> None:
    async with asyncio.timeout(10):
        while (task := await client.task(key)) is not None and task.status is not Status.STOPPED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(containerd: Any, *options: str) -> AsyncIterator[tuple[Client, Key]]:
    key = Key("default", containerd.unique("client"))
    async with Client(containerd.address) as client:
        containerd.ctr("run", "-d", *options, containerd.image, key.id, "/bin/sleep", "100")
        try:
            yield client, key
        finally:
            await remove(client, key)


async def test_record_and_task(containerd: Any):
    """What `ctr run` was told is what the client reads."""
    before = time.time_ns()
    async with running(containerd, "--label", "a.b/c=d", "--annotation", f"{EXTENSION}=8080:80") as (
        client,
        key,
    ):
        found = await client.container(key)
        assert (found.key, found.image) == (key, containerd.image)
        assert found.labels["a.b/c"] == "d"
        assert found.annotations[EXTENSION] == "8080:80"
        assert (found.netns, found.host_network, found.extensions) == (None, False, {})
        assert before - 10**9 < found.created_at < time.time_ns()
        assert found in await client.containers("default")
        assert await client.containers("default", 'labels."a.b/c"==d', f"id=={key.id}") == [found]
        task = await client.task(key)
        assert task is not None
        assert (task.status, task.pid > 1) == (Status.RUNNING, True)
        assert (await client.tasks("default"))[key.id] == task
        assert "default" in await client.namespaces()
        assert await client.version()


async def test_updates(containerd: Any):
    """Labels, extension and spec of a running container change one by one; an empty value is none."""
    async with running(containerd, "--label", "keep=k") as (client, key):
        await client.set_labels(key, {"x": "1", "y.z/w": "2"})
        await client.set_labels(key, {"x": ""})
        labels = (await client.container(key)).labels
        assert ("x" in labels, labels["y.z/w"], labels["keep"]) == (False, "2", "k")
        with pytest.raises(ContainerdError, match="greater than maximum size"):
            await client.set_labels(key, {"long": "x" * 5000})
        assert await client.extension(key, EXTENSION) is None
        await client.set_extension(key, EXTENSION, EXTENSION, b"8080:80")
        await client.set_extension(key, "other", "other", b"x")
        assert await client.extension(key, EXTENSION) == b"8080:80"
        await client.set_extension(key, EXTENSION, EXTENSION, b"")
        assert await client.extension(key, EXTENSION) is None
        spec = await client.spec(key)
        spec.setdefault("annotations", {})[EXTENSION] = "81:80 ü"
        await client.set_spec(key, spec)
        found = await client.container(key)
        assert (found.annotations[EXTENSION], found.extensions) == ("81:80 ü", {"other": b"x"})
        assert await client.spec(key) == spec


async def test_removal(containerd: Any):
    """A container is killed, its task deleted with its exit status, its record and snapshot removed."""
    async with running(containerd) as (client, key):
        with pytest.raises(ContainerdError, match="running"):
            await client.delete_task(key)
        with pytest.raises(ContainerdError, match="it has a task"):
            await client.delete_container(key)
        await client.kill(key, signal.SIGKILL, all_processes=True)
        await stopped(client, key)
        with pytest.raises(NotFoundError):
            await client.kill(key, signal.SIGKILL)
        assert await client.delete_task(key) == 137
        assert (await client.delete_task(key), await client.task(key)) == (None, None)
        assert key.id in containerd.ctr("snapshots", "ls")
        await client.delete_container(key)
        await client.delete_container(key)
        assert key.id not in containerd.ctr("snapshots", "ls")
        with pytest.raises(NotFoundError, match=key.id):
            await client.container(key)


async def test_host_network(containerd: Any):
    """A container on the host's network is seen as such."""
    async with running(containerd, "--net-host") as (client, key):
        assert (await client.container(key)).host_network


async def test_image_config(containerd: Any):
    """The image's configuration is read; of an image that is not there, none."""
    async with Client(containerd.address) as client:
        config = await client.image_config("default", containerd.image)
        assert config is not None
        assert (config["os"], isinstance(config["config"], dict)) == ("linux", True)
        assert await client.image_config("default", "example.com/nothing:here") is None


async def test_watch(containerd: Any):
    """Start, update, exit and deletion of a container are seen after SUBSCRIBED; its exec's exit is not."""
    async with Client(containerd.address) as client, asyncio.TaskGroup() as group:
        watch = Watch(client)
        watching = group.create_task(watch.run())
        try:
            assert await asyncio.wait_for(anext(watch), 10) is Marker.SUBSCRIBED
            async with running(containerd) as (other, key):

                async def until(topic: str) -> Event:
                    async for item in watch:
                        if isinstance(item, Event) and item.key == key and item.topic == topic:
                            return item
                    raise AssertionError

                async with asyncio.timeout(20):
                    start = await until("/tasks/start")
                    assert abs(time.time_ns() - start.timestamp) < 10 * 10**9
                    containerd.ctr("tasks", "exec", "--exec-id", "probe", key.id, "/bin/true")
                    await other.set_labels(key, {"a": "b"})
                    await until("/containers/update")
                    await remove(other, key)
                    await until("/containers/delete")
        finally:
            watching.cancel()


async def test_nothing_is_missed_after_subscribed(containerd: Any):
    """A change made right after SUBSCRIBED is always in an event: 50 fresh subscriptions, none missed."""
    async with running(containerd) as (client, key):
        for number in range(50):
            async with asyncio.TaskGroup() as group:
                watch = Watch(client)
                watching = group.create_task(watch.run())
                async with asyncio.timeout(10):
                    assert await anext(watch) is Marker.SUBSCRIBED
                    await client.set_labels(key, {"round": str(number)})
                    item = await anext(watch)
                assert isinstance(item, Event)
                assert (item.topic, item.key) == ("/containers/update", key)
                watching.cancel()
