"""A wall clock that jumps under a real watcher: for that process alone, by `clock.c`. The kernel's clock is real.

What asks for the time of the day is told another, gRPC's core too. What this cannot show is what the kernel does to
a wait until a time of the day. strace finds none in the program or in gRPC: they wait for so many seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ctrport import control
from ctrport.config import Settings
from ctrport.errors import ConflictError
from lab import until
from soak.answers import ECHO_PORT
from soak.load import _seconds_of_processor
from soak.stage import Stage, add

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.model.workload import Key
    from fakes import FakeContainerd

SOURCE = Path(__file__).parents[1] / "clock.c"
DAY = 86400
RESYNC = 0.5
LONG = 30.0  # seconds; a machine under load


class Clock:
    """What the time of the day is for programs with this environment."""

    def __init__(self, directory: Path) -> None:
        library = directory / "clock.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, SOURCE], check=True, timeout=60
        )
        self._file = (directory / "clock").open("w+b", buffering=0)
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_FILE": self._file.name}

    def set(self, seconds: int) -> None:
        """Have it be so far ahead of the machine's, from now on."""
        os.pwrite(self._file.fileno(), seconds.to_bytes(8, sys.byteorder, signed=True), 0)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage(3) as stage:
        yield stage


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def start(stage: Stage, name: str, publish: str, place: int = 0) -> Key:
    """Start a container that asks for ports."""

    def act(fake: FakeContainerd) -> Key:
        key = add(fake, name, publish)
        fake.start(key, pid=stage.places[place][0])
        return key

    return stage.do(act)


def right(stage: Stage) -> bool:
    """Say whether the kernel holds what the containers that run ask for."""
    found, _, _ = stage.converged()
    assert found == []
    return True


def passes(stage: Stage) -> int:
    """Give how many full passes there were."""
    return stage.fake.calls["namespaces_list"]


def ask(stage: Stage, *operations: tuple[str, dict[str, Any]]) -> Any:
    """Ask the watcher as a command does, for one thing after the other; gives the last answer."""
    settings = Settings(address=stage.fake.address, root=stage.root, state=stage.state)

    async def work() -> Any:
        async with control.connect(settings) as link:
            assert link is not None
            for operation, arguments in operations:
                answer = await link.call(operation, **arguments)
            return answer

    return asyncio.run(work())


@contextlib.contextmanager
def watching(stage: Stage, clock: Clock, config: str = "") -> Iterator[int]:
    """Give the process id of a watcher that goes by this clock."""
    watcher = stage.watch(config=config, env=clock.environment, within=LONG)
    yield watcher.pid
    assert watcher.poll() is None


@pytest.mark.parametrize("jump", [DAY, -DAY, 20 * 365 * DAY, -20 * 365 * DAY])
def test_jumps(stage: Stage, clock: Clock, jump: int):
    """Passes go on at their pace, new containers get their ports, calls have their deadlines, doctor is content."""
    with watching(stage, clock, f"resync_seconds = {RESYNC}\ntimeout_seconds = 1\n") as pid:
        start(stage, "before", f"8000:{ECHO_PORT}")
        assert right(stage)
        for number, now in enumerate((jump, 0), start=1):
            clock.set(now)
            stage.fake.clock = now
            mark = len(stage.log)
            start(stage, f"after{number}", f"{8000 + number}:{ECHO_PORT}", number)
            assert right(stage)
            assert [stage.echoes(8000 + n) for n in range(number + 1)] == [True] * (number + 1)
            assert time.strftime("\n%Y-%m-%d", time.localtime(time.time() + now)) in stage.log[mark - 1 :]

            began, made, used = time.monotonic(), passes(stage), _seconds_of_processor(pid)
            until(lambda made=made: passes(stage) >= made + 4, within=LONG, what="passes")
            took = time.monotonic() - began
            assert passes(stage) - made < 2 * took / RESYNC + 2
            assert _seconds_of_processor(pid) - used < 0.8 * took, "it spins"

            told = stage.log.count("gave no answer within 1 s")
            stage.fake.delay["namespaces_list"] = 3600
            until(
                lambda told=told: stage.log.count("gave no answer within 1 s") > told, within=LONG, what="the end"
            )
            stage.fake.delay.clear()
            assert right(stage)
            until(lambda: behind(stage, clock) == [[], []], within=LONG, what="the end of doctor's doubt")


def behind(stage: Stage, clock: Clock) -> list[list[str]]:
    """Give what doctor says of the watcher's passes, by the clock that jumps and by the machine's."""
    found = []
    for environment in (clock.environment, {}):
        said = stage.lab.host.run(
            *(sys.executable, "-m", "ctrport", *stage.words(), "doctor", "--format", "json"),
            env={**stage.environment(), **environment},
            check=False,
            timeout=60,
        )
        findings = json.loads(said.stdout)["findings"]
        found.append([each["what"] for each in findings if each["code"] == "watcher-behind"])
    return found


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_jump_while_a_call_waits(stage: Stage, clock: Clock, jump: int):
    """A call that containerd leaves unanswered ends after its seconds, and another pass gets through."""
    with watching(stage, clock, "resync_seconds = 3600\ntimeout_seconds = 4\n") as pid:
        start(stage, "web", f"8000:{ECHO_PORT}")
        assert right(stage)
        made = passes(stage)
        stage.fake.delay["namespaces_list"] = 3600
        os.kill(pid, signal.SIGHUP)
        until(lambda: passes(stage) > made, within=LONG, what="the call")
        clock.set(jump)
        stage.fake.delay.clear()
        until(lambda: "gave no answer within 4 s" in stage.log, within=LONG, what="the deadline")
        start(stage, "late", f"8001:{ECHO_PORT}", 1)
        assert right(stage)
        assert stage.echoes(8001)


@pytest.mark.parametrize("operation", ["publish", "reserve"])
def test_nobody_takes_a_port_by_a_clock_that_was_set_back(stage: Stage, clock: Clock, operation: str):
    """`publish` and `run` come after all who are there, whatever the clock said when those were made."""
    with watching(stage, clock):
        start(stage, "today", f"8000:{ECHO_PORT}")
        stage.fake.clock = DAY
        start(stage, "tomorrow", f"8001:{ECHO_PORT}", 1)
        stage.fake.clock = -DAY
        other = start(stage, "yesterday", f"8002:{ECHO_PORT}", 2)
        assert right(stage)
        clock.set(-DAY)

        def wish(port: int) -> None:
            if operation == "publish":
                ask(stage, ("publish", {"container": list(other), "specs": f"{port}:{ECHO_PORT}"}))
            else:
                new = {"container": list(stage.reservation(port)), "network": "default"}
                wanted = {**new, "publish": f"{port}:{ECHO_PORT}", "ip": None}
                ask(stage, ("reserve", {**new, "labels": {}}), ("connect", wanted))

        for port, holder in (8000, "today"), (8001, "tomorrow"):
            with pytest.raises(ConflictError, match=f"is held by container default/{holder}"):
                wish(port)
        assert right(stage)
        wish(8003)
        assert [stage.echoes(8000 + n) for n in range(3)] == [True] * 3


def test_the_port_is_for_who_connects_first(stage: Stage, clock: Clock):
    """Of two runs that have their names, the later one may be faster; the other asks in vain, and does not wait."""
    first, second = stage.reservation(8000), stage.reservation(8001)
    settings = Settings(address=stage.fake.address, root=stage.root, state=stage.state)

    async def race() -> None:
        async with control.connect(settings) as slow, control.connect(settings) as fast:
            assert slow is not None
            assert fast is not None
            for link, key in (slow, first), (fast, second):
                await link.call("reserve", container=list(key), network="default", labels={})
            wish = {"publish": f"8000:{ECHO_PORT}", "network": "default", "ip": None}
            await fast.call("connect", container=list(second), **wish)
            with pytest.raises(ConflictError, match=f"is held by container default/{second.id}"):
                await slow.call("connect", container=list(first), **wish)
            (entry,) = (await slow.call("bindings", container=list(first)))["containers"]
            assert entry["mappings"] == []
            (entry,) = (await fast.call("bindings", container=list(second)))["containers"]
            assert [mapping["state"] for mapping in entry["mappings"]] == ["active"]

    with watching(stage, clock):
        asyncio.run(race())
