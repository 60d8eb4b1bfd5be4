"""Records that are read before their containers start, and what is believed of the event of a start."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.containerd import created
from ctrport.containerd.client import Client
from ctrport.containerd.created import Created
from ctrport.containerd.decode import Event
from ctrport.model.annotations import PUBLISH
from ctrport.model.workload import Key, Start
from ctrport.network import proc
from ctrport.snapshot import Snapshot
from fakes import FakeContainerd, spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ctrport.model.workload import Container

WEB = Key("default", "web")


class Site:
    """A containerd, and what was read of its containers before they started."""

    def __init__(self, fake: FakeContainerd, client: Client) -> None:
        self.fake = fake
        self.client = client
        self.created = Created(client)

    def tell(self, topic: str, key: Key = WEB) -> Container | None:
        event = Event(topic=topic, namespace=key.namespace, container_id=key.id)
        return self.created.take(event)

    async def reads(self, count: int) -> None:
        """Wait until so many records were asked for in all, and all that came are taken in."""

        def done() -> bool:
            records = self.created._records.values()
            return self.fake.calls["containers_get"] >= count and not any(isinstance(r, Event) for r in records)

        async with asyncio.timeout(5):
            while not done():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)


@asynccontextmanager
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with FakeContainerd(tmp_path / "c.sock") as fake, Client(fake.address) as client:
        made = Site(fake, client)
        running = asyncio.create_task(made.created.run())
        yield made
        running.cancel()


async def test_a_record_is_there_before_the_start(tmp_path: Path):
    """What was read at the creation is given with the start, and once only."""
    async with site(tmp_path) as here:
        here.fake.add(WEB, image="web")
        assert here.tell("/containers/create") is None
        await here.reads(1)
        record = here.tell("/tasks/start")
        assert (record and (record.key, record.image)) == (WEB, "web")
        assert here.tell("/tasks/start") is None


@pytest.mark.parametrize("topic", ["/containers/update", "/tasks/exit", "/tasks/delete", "/containers/delete"])
async def test_a_record_holds_until_the_next_event(tmp_path: Path, topic: str):
    """Whatever is told of the container, what was read before is given no more; nor after lost events."""
    async with site(tmp_path) as here:
        here.fake.add(WEB)
        here.tell("/containers/create")
        await here.reads(1)
        here.tell(topic)
        assert here.tell("/tasks/start") is None
        here.tell("/containers/create")
        await here.reads(2)
        here.created.forget()
        assert here.tell("/tasks/start") is None


async def test_a_record_of_another_of_that_name(tmp_path: Path):
    """A container that was deleted and made anew while its record was on its way is not taken for the first."""
    async with site(tmp_path) as here:
        here.fake.add(WEB, image="old")
        here.fake.delay["containers_get"] = 0.2
        here.tell("/containers/create")
        await asyncio.sleep(0.1)  # half of its way
        here.tell("/containers/delete")
        here.fake.records[WEB].image = "new"
        here.tell("/containers/create")
        await here.reads(2)
        record = here.tell("/tasks/start")
        assert record
        assert record.image == "new"


async def test_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of more than a few creations only the last ones are read."""
    monkeypatch.setattr(created, "LIMIT", 2)
    async with site(tmp_path) as here:
        keys = [here.fake.add(Key("default", f"c{number}")) for number in range(4)]
        for key in keys:
            here.tell("/containers/create", key)
        await here.reads(2)
        assert [here.tell("/tasks/start", key) is not None for key in keys] == [False, False, True, True]
        assert here.fake.calls["containers_get"] == 2


async def test_who_gives_no_answer(tmp_path: Path):
    """A container that is gone when it is read does no harm to the next."""
    async with site(tmp_path) as here:
        here.tell("/containers/create", Key("default", "gone"))
        here.fake.add(WEB)
        here.tell("/containers/create")
        async with asyncio.timeout(5):
            while here.tell("/tasks/start") is None:
                here.tell("/containers/create")
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(("seconds_before", "asked"), [(0.0, 0), (10.0, 1)])
async def test_which_start_is_believed(tmp_path: Path, seconds_before: float, asked: int):
    """The event's pid is the task's if its process was there then; a younger process only has the same number."""
    begun = proc.started(os.getpid())
    assert begun is not None
    async with site(tmp_path) as here:
        here.fake.add(WEB, spec({PUBLISH: "8080:80"}))
        here.fake.start(WEB, pid=os.getpid())
        snapshot = Snapshot(here.client, ())
        record = await here.client.container(WEB)
        here.fake.calls.clear()
        start = Start(os.getpid(), begun - seconds_before, record)
        answers: list[Any] = await snapshot.ask([WEB], {WEB: start})
        assert [(a.container.key, a.task.pid) for a in answers] == [(WEB, os.getpid())]
        assert (here.fake.calls["tasks_get"], here.fake.calls["containers_get"]) == (asked, asked)


async def test_a_start_whose_process_is_gone(tmp_path: Path):
    """Whoever started and ended is asked for as it is now."""
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    async with site(tmp_path) as here:
        here.fake.add(WEB, spec({PUBLISH: "8080:80"}))
        record = await here.client.container(WEB)
        start = Start(process.pid, proc.uptime(), record)
        answers: list[Any] = await Snapshot(here.client, ()).ask([WEB], {WEB: start})
        assert [a.task for a in answers] == [None]
