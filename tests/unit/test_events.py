"""Watching containerd's events: the sentinel, loss and return, and a slow consumer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.containerd.client import Client
from ctrport.containerd.decode import Event
from ctrport.containerd.events import Buffer, Item, Marker, Watch
from ctrport.containerd.rpc import grpc
from ctrport.errors import ContainerdError
from ctrport.model.workload import Key
from fakes import FakeContainerd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WEB = Key("default", "web")
DB = Key("other", "db")


@asynccontextmanager
async def watching(fake: FakeContainerd, *, deadline: float = 5, **options: Any) -> AsyncIterator[Watch]:
    async with Client(fake.address, timeout=deadline) as client, asyncio.TaskGroup() as group:
        watch = Watch(client, **options)
        running = group.create_task(watch.run())
        try:
            yield watch
        finally:
            running.cancel()


async def take(watch: Watch, count: int = 1) -> list[Any]:
    """Take items; an event as (topic, key)."""
    items = []
    async with asyncio.timeout(5):
        for _ in range(count):
            item = await anext(watch)
            items.append((item.topic, item.key) if isinstance(item, Event) else item)
    return items


async def test_events(tmp_path: Path):
    """After SUBSCRIBED come the events of all namespaces' containers, not those of exec'ed processes."""
    async with FakeContainerd(tmp_path / "c.sock") as fake, watching(fake) as watch:
        assert await take(watch) == [Marker.SUBSCRIBED]
        fake.add(WEB)
        assert await take(watch) == [("/containers/create", WEB)]
        fake.start(WEB)
        assert await take(watch) == [("/tasks/start", WEB)]
        fake.exit(WEB, exec_id="probe")
        fake.add(DB)
        assert await take(watch) == [("/containers/create", DB)]
        fake.start(DB)
        assert await take(watch) == [("/tasks/start", DB)]
        fake.exit(WEB)
        assert await take(watch) == [("/tasks/exit", WEB)]
        fake.delete(WEB)
        assert await take(watch) in ([("/tasks/delete", WEB)], [("/containers/delete", WEB)])


async def test_sentinel_until_live(tmp_path: Path):
    """No SUBSCRIBED before the subscription is live, however long that takes; nothing after it is missed."""
    async with FakeContainerd(tmp_path / "c.sock") as fake:
        fake.delay["events_subscribe"] = 0.3
        async with watching(fake) as watch:
            first = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.2)
            assert not first.done()
            assert await asyncio.wait_for(first, 5) is Marker.SUBSCRIBED
            assert 3 < fake.calls["events_publish"] < 20
            fake.start(WEB)
            assert await take(watch) == [("/tasks/start", WEB)]


async def test_sentinel_never_back(tmp_path: Path):
    """A subscription that never becomes live is given up and made again."""
    async with FakeContainerd(tmp_path / "c.sock") as fake:
        fake.swallow_events = 1
        async with watching(fake, deadline=0.3) as watch:
            assert await take(watch, 2) == [Marker.LOST, Marker.SUBSCRIBED]
            assert isinstance(watch.error, ContainerdError)
            assert "gave no event back within 0.3 s" in watch.error.message
            assert fake.calls["events_subscribe"] == 2


async def test_stream_ends(tmp_path: Path):
    """The end of the stream gives LOST, then SUBSCRIBED, and events again."""
    async with FakeContainerd(tmp_path / "c.sock") as fake, watching(fake) as watch:
        for _ in range(3):
            assert await take(watch) == [Marker.SUBSCRIBED]
            fake.start(WEB)
            assert await take(watch) == [("/tasks/start", WEB)]
            fake.drop_streams()
            assert await take(watch) == [Marker.LOST]
            assert "ended the event stream" in watch.error.message


async def test_restart(tmp_path: Path):
    """LOST comes once while containerd is away, SUBSCRIBED when it is back; also when it is late at first."""
    fake = FakeContainerd(tmp_path / "c.sock")
    async with watching(fake) as watch:
        assert await take(watch) == [Marker.LOST]
        assert "No such file" in watch.error.message
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.5)
        await fake.start_server()
        assert await take(watch) == [Marker.SUBSCRIBED]
        await fake.stop_server()
        assert await take(watch) == [Marker.LOST]
        await fake.start_server()
        assert await take(watch) == [Marker.SUBSCRIBED]
    await fake.stop_server()


async def test_refused(tmp_path: Path):
    """A refused subscription is tried again with growing pauses, not in a tight loop."""
    async with FakeContainerd(tmp_path / "c.sock") as fake:
        fake.fail["events_subscribe"] = grpc.StatusCode.UNAVAILABLE
        async with watching(fake) as watch:
            assert await take(watch) == [Marker.LOST]
            await asyncio.sleep(0.6)
            assert 3 <= fake.calls["events_subscribe"] <= 6
            fake.fail.clear()
            assert await take(watch) == [Marker.SUBSCRIBED]


async def test_heartbeat(tmp_path: Path):
    """A stream that has gone silent is found out by the sentinel."""
    async with (
        FakeContainerd(tmp_path / "c.sock") as fake,
        watching(fake, deadline=0.3, heartbeat=0.05) as watch,
    ):
        assert await take(watch) == [Marker.SUBSCRIBED]
        await asyncio.sleep(0.3)
        assert fake.calls["events_subscribe"] == 1
        fake._subscribers.clear()  # the stream stays open and gives nothing
        assert await take(watch, 2) == [Marker.LOST, Marker.SUBSCRIBED]


async def test_slow_consumer(tmp_path: Path):
    """Nothing piles up: a container has one place, and too many of them become one RESYNC."""
    async with FakeContainerd(tmp_path / "c.sock") as fake, watching(fake, limit=3) as watch:
        assert await take(watch) == [Marker.SUBSCRIBED]
        for _ in range(100):
            fake.start(WEB)
            fake.start(DB)
        fake.exit(WEB)
        await asyncio.sleep(0.2)
        assert await take(watch, 2) == [("/tasks/exit", WEB), ("/tasks/start", DB)]
        for number in range(10):
            fake.start(Key("default", f"c{number}"))
        await asyncio.sleep(0.2)
        assert await take(watch) == [Marker.RESYNC]
        fake.start(WEB)
        assert await take(watch) == [("/tasks/start", WEB)]


def event(number: int, topic: str = "/tasks/start") -> Event:
    return Event(topic=topic, namespace="n", container_id=str(number))


async def drain(buffer: Buffer) -> list[Item]:
    items: list[Item] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            while True:
                items.append(await buffer.take())
    return items


async def test_buffer_keeps_place():
    """A container keeps the place of its first event and has the latest."""
    buffer = Buffer(9)
    for item in (event(1), event(2), event(1, "/tasks/exit")):
        buffer.add(item)
    assert await drain(buffer) == [event(1, "/tasks/exit"), event(2)]


async def test_buffer_drops_the_pid_of_a_start_that_was_not_all():
    """A start that has taken the place of another event says no more which process is to be believed."""
    buffer = Buffer(9)
    start = replace(event(1), pid=7)
    for item in (event(1, "/containers/update"), start, replace(event(2), pid=8)):
        buffer.add(item)
    assert await drain(buffer) == [replace(start, pid=None), replace(event(2), pid=8)]


async def test_buffer_markers():
    """Markers nobody has taken collapse, and events that a listing or a loss makes idle go."""
    buffer = Buffer(9)
    for _ in range(3):
        buffer.add(event(1))
        buffer.mark(Marker.LOST)
        buffer.mark(Marker.SUBSCRIBED)
    buffer.add(event(2))
    assert await drain(buffer) == [Marker.LOST, Marker.SUBSCRIBED]
    buffer.mark(Marker.SUBSCRIBED)
    buffer.mark(Marker.LOST)
    assert await drain(buffer) == [Marker.LOST]
    for number in range(20):
        buffer.add(event(number))
    buffer.mark(Marker.LOST)
    assert await drain(buffer) == [Marker.LOST]
