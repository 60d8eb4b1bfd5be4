"""Repairs where the kernel or the following of it fails: the program's own tasks, on real rules."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from ctrport import heal, repairs
from ctrport.errors import HostError, KernelError
from ctrport.firewall import monitor
from ctrport.service import Service
from lab import Answer, ask, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from passes import Writer

LONG = 20.0
Log = pytest.LogCaptureFixture
REFUSALS = {
    "busy": KernelError("nftables refused: Device or resource busy"),
    "memory": KernelError("nftables refused: Cannot allocate memory"),
    "permission": HostError("nftables refused: Operation not permitted"),
}


@pytest.fixture
def healing(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Service]]:
    """Give a way to start repairs for a writer with one published port; retries are quick."""
    monkeypatch.setattr(heal, "RETRY", (0.05, 0.2))
    writer.publish("a", "8080:80")
    assert answers(writer)
    service = Service(writer.reconciler.snapshot._client, writer.reconciler)
    tasks = []

    async def nothing() -> None:
        pass

    async def begin() -> None:
        ready = asyncio.Event()
        ready.set()
        tasks.append(asyncio.create_task(heal.Healer(service, ready, nothing).run()))
        await asyncio.sleep(0.2)

    async def end() -> None:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def start() -> Service:
        writer.wait(begin())
        return service

    yield start
    writer.wait(end())


def answers(writer: Writer) -> bool:
    return isinstance(ask(writer.lab.remote, "192.0.2.1", 8080, timeout=0.3), Answer)


@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS.keys())
def test_the_kernel_refuses_for_a_while(
    writer: Writer,
    healing: Callable[[], Service],
    monkeypatch: pytest.MonkeyPatch,
    caplog: Log,
    error: Exception,
):
    """A repair that the kernel refuses is told and tried again until it is taken."""
    service = healing()
    nft, refusals = writer.reconciler.kernel.nft, itertools.count()
    take = nft.apply

    def apply(script: str) -> None:
        if next(refusals) < 3:
            raise error
        take(script)

    monkeypatch.setattr(nft, "apply", apply)
    writer.lab.host.nft("delete table inet ctrport")
    until(lambda: answers(writer), within=LONG, what="the port")
    assert "could not put our table right" in caplog.text
    until(lambda: service.repairs.to_json()["repairs"] == 1, within=LONG, what="the note of it")


def test_more_than_can_be_followed(
    writer: Writer,
    healing: Callable[[], Service],
    monkeypatch: pytest.MonkeyPatch,
    caplog: Log,
):
    """When notifications are lost everything is compared, whatever they would have said."""
    monkeypatch.setattr(monitor, "BUFFER", 4096)
    healing()
    writer.loop.call_soon_threadsafe(time.sleep, 2)  # a watcher that has no time to read
    elements = ", ".join(f"2001:db8::{number:x}" for number in range(5000))
    writer.lab.host.nft(
        f"table ip6 flood {{ set s {{ type ipv6_addr; elements = {{ {elements} }}; }}; }}\n"
        "flush chain inet ctrport prerouting"
    )
    until(lambda: answers(writer), within=LONG, what="the port")
    assert "more was done to nftables than could be followed" in caplog.text
    until(lambda: "chain prerouting lacked the rule" in caplog.text, within=LONG, what="the note of it")


def test_nothing_can_be_followed(
    writer: Writer,
    healing: Callable[[], Service],
    monkeypatch: pytest.MonkeyPatch,
    caplog: Log,
):
    """A monitor that fails is told once and tried again; what was missed meanwhile is found then."""
    caplog.set_level("INFO")
    broken, tries = [True], itertools.count()
    made = heal.Monitor

    def make(*arguments: Any) -> monitor.Monitor:
        next(tries)
        if broken[0]:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return made(*arguments)

    monkeypatch.setattr(heal, "Monitor", make)
    healing()
    writer.lab.host.nft("delete table inet ctrport")
    until(lambda: next(tries) > 3, within=LONG, what="several tries")
    assert not answers(writer)
    broken[0] = False
    until(lambda: answers(writer), within=LONG, what="the port")
    assert caplog.text.count("cannot follow what is done to nftables") == 1
    until(lambda: "table inet ctrport was gone" in caplog.text, within=LONG, what="the note of it")
    assert "following again" in caplog.text


def test_other_damage_during_a_fight(
    writer: Writer, healing: Callable[[], Service], monkeypatch: pytest.MonkeyPatch
):
    """What is fought over waits for the end of a pause; as soon as something else is damaged, all is put right."""
    monkeypatch.setattr(repairs, "PAUSES", (600.0, 600.0))
    writer.publish("b", "9100:80")
    service = healing()
    for number in range(repairs.OFTEN + 1):
        writer.lab.host.nft("delete element inet ctrport published4 { tcp . 8080 }")
        until(lambda n=number: service.repairs.to_json()["repairs"] > n, within=LONG, what="a repair")
    writer.lab.host.nft("delete element inet ctrport published4 { tcp . 8080 }")
    until(lambda: not answers(writer), within=LONG, what="the end of repairs at once")
    writer.lab.host.nft("delete element inet ctrport published4 { tcp . 9100 }")
    until(lambda: answers(writer), within=LONG, what="the port")
    made = repairs.OFTEN + 2
    until(lambda: service.repairs.to_json()["repairs"] == made, within=LONG, what="a note of the last repair")


def test_somebody_else_writes_at_the_same_time(writer: Writer, healing: Callable[[], Service]):
    """Whatever falls between our own transactions and theirs, in the end the table is as it should be."""
    service = healing()
    for number in range(15):
        writer.lab.host.nft(f"add table ip other{number}\ndelete element inet ctrport published4 {{ tcp . 8080 }}")
        writer.publish("b", f"{9100 + number}:80")
        until(lambda: answers(writer), within=LONG, what="the port")
        service.repairs._records.clear()  # no fight
        writer.end("b")
    assert answers(writer)
    listing = writer.lab.host.run("nft", "list", "map", "inet", "ctrport", "published4").stdout
    assert listing.count("tcp . ") == 1
