"""Ten thousand mappings: how long a cold start takes, what it costs, and that nothing grows.

The containers are the fake's (see stage), all in a few namespaces; the watcher is the real program, the table real.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lab import connect, until
from soak.answers import ECHO_PORT
from soak.rounds import Size
from soak.stage import PATIENCE, Stage, add
from soak.world import HOST4, HOST6

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrport.model.workload import Key
    from fakes import FakeContainerd

CONTAINERS, PORTS = 1000, 10
FIRST_PORT = 10000
BURST = 200
IDLE_SECONDS, CHURN_SECONDS = 30.0, 60.0
GROWTH = 16 * 1024  # KiB that the watcher may have more after the churn than before
WITHIN = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


def _publish(number: int) -> str:
    low = FIRST_PORT + number * PORTS
    return f"{low}-{low + PORTS - 1}:{ECHO_PORT}-{ECHO_PORT + PORTS - 1}"


def _seconds_of_processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Load:
    """The stage with its containers, the watcher, and what was found wrong."""

    def __init__(self, stage: Stage, say: Callable[[str], None]) -> None:
        self.stage, self.say = stage, say
        self.wrong: list[str] = []
        self.keys: list[Key] = []
        self._numbers: dict[Key, int] = {}

    def fill(self) -> None:
        def make(fake: FakeContainerd) -> None:
            for number in range(CONTAINERS):
                key = add(fake, f"c{number}", _publish(number))
                self.keys.append(key)
                self._numbers[key] = number
                fake.start(key, pid=self._pid(key))

        self.stage.do(make)

    def _pid(self, key: Key) -> int:
        return self.stage.places[self._numbers[key] % len(self.stage.places)][0]

    def converged(self, what: str) -> float:
        found, granted, took = self.stage.converged(within=WITHIN, every=0.3)
        self.wrong += [f"{what}: {text}" for text in found[:5]]
        for mapping in random.sample(granted, min(20, len(granted))):
            if mapping.target == ECHO_PORT:
                self._echo(what, mapping.ports[0])
        return took

    def _echo(self, what: str, port: int) -> None:
        for address in (HOST4, HOST6):
            try:
                with connect(self.stage.lab.remote, address, port, timeout=5) as connection:
                    connection.socket.sendall(b"hello\n")
                    heard = connection.socket.recv(100)
            except OSError as error:
                self.wrong.append(f"{what}: [{address}]:{port}: {error}")
                continue
            if heard != b"hello\n":
                self.wrong.append(f"{what}: [{address}]:{port} said {heard!r}")

    def burst(self, pid: int) -> None:
        """End many containers at once and start them at once, twice; until the kernel has it, and what it takes."""
        some = self.keys[-BURST:]
        for what, action in (("ends", self._end), ("starts", self._start)) * 2:
            used = _seconds_of_processor(pid)
            self.stage.do(lambda fake, action=action: [action(fake, key) for key in some])
            took = self.converged(f"{BURST} {what}")
            used = _seconds_of_processor(pid) - used
            label = f"{BURST} {what} at once:"
            self.say(f"{label:20}in the kernel after {took:.2f} s, {used:.2f} s of processor")

    def _end(self, fake: FakeContainerd, key: Key) -> None:
        fake.exit(key)

    def _start(self, fake: FakeContainerd, key: Key) -> None:
        fake.start(key, pid=self._pid(key))

    def churn(self) -> int:
        """End and start containers one by one for a while; gives how many."""
        count, rng = 0, random.Random(1)
        deadline = time.monotonic() + CHURN_SECONDS / 2
        while time.monotonic() < deadline:
            key = rng.choice(self.keys)
            self.stage.do(lambda fake, key=key: self._end(fake, key))
            time.sleep(rng.expovariate(1 / 0.01))
            self.stage.do(lambda fake, key=key: self._start(fake, key))
            time.sleep(rng.expovariate(1 / 0.01))
            count += 2
        return count

    def size(self, pid: int) -> Size:
        """Give what the watcher has right after a full pass: a listing of everything takes memory for a moment."""
        stage = self.stage
        words = ("--address", stage.fake.address, "--root", stage.root, "--state", stage.state, "sync")
        stage.lab.host.run(sys.executable, "-m", "ctrport", *words, env=stage.environment(), timeout=WITHIN)
        return Size.of(pid)

    def measure(self, pid: int) -> None:
        """Look at a watcher that is ready: idle, in bursts, in a churn."""
        used = _seconds_of_processor(pid)
        time.sleep(IDLE_SECONDS)
        used = _seconds_of_processor(pid) - used
        self.say(f"idle:               {100 * used / IDLE_SECONDS:.2f} % of a processor over {IDLE_SECONDS:.0f} s")
        self.burst(pid)
        sizes, count = [self.size(pid)], 0
        for _ in range(2):
            count += self.churn()
            took = self.converged("the churn")
            sizes.append(self.size(pid))
        self.say(
            f"churn, {CHURN_SECONDS:.0f} s:        {count} starts and ends, all there {took:.2f} s after the last"
        )
        self.say(f"after full passes:  {' -> '.join(map(str, sizes))}")
        before, amid, after = sizes
        if after.memory > max(before.memory, amid.memory) + GROWTH or after.descriptors > before.descriptors + 8:
            self.wrong.append("the watcher grows")


def load(say: Callable[[str], None]) -> int:
    """Measure, and compare after each step; gives the exit code."""
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(Stage(10))
        running = Load(stage, say)
        running.fill()
        say(f"mappings:           {CONTAINERS * PORTS} over {CONTAINERS} containers, IPv4 and IPv6")
        for what in ("cold start", "start, table there"):
            began = time.monotonic()
            watcher = stage.watch(within=WITHIN)
            took, used = time.monotonic() - began, _seconds_of_processor(watcher.pid)
            stack.callback(watcher.kill)
            running.converged(what)
            say(f"{what + ':':20}{took:.2f} s to READY, {used:.2f} s of processor; {Size.of(watcher.pid)}")
            if what == "cold start":
                watcher.kill()
                watcher.wait(10)
        running.measure(watcher.pid)
        if watcher.poll() is not None:
            running.wrong.append("the watcher has ended by itself")
        watcher.terminate()
        until(lambda: watcher.poll() is not None, within=PATIENCE, what="the watcher's end")
        if "Traceback" in stage.log:
            where = stage.log.index("Traceback")
            running.wrong.append(f"a traceback in the watcher's log:\n{stage.log[where : where + 3000]}")
    for text in running.wrong:
        say(f"MISMATCH: {text}")
    say(f"mismatches:         {len(running.wrong)}")
    return 1 if running.wrong else 0
