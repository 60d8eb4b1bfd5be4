"""The watcher killed with -9 at random instants while containers come and go; the next one must find its way.

Kills fall into starts, into passes, and into the connecting of a reservation to its network. After each, another
watcher is started; unless it is killed in its start, containers stand still once it is ready, and the kernel is
compared with the model: rules, a UDP client that never falls silent, a connection that stays open, and what
reservations may have left behind.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lab import until
from soak.answers import ECHO_PORT, Line, Talker
from soak.churn import Churn
from soak.rounds import Size
from soak.stage import Stage, add
from soak.world import HOST4, LINE_PORT, TALK_PORT

if TYPE_CHECKING:
    from collections.abc import Callable

BREEDER = Path(__file__).with_name("breeder.py")
AT_START = 0.4  # of the kills fall into a start
START_SECONDS, WORK_SECONDS = 0.3, 0.4  # a kill comes up to so long after the beginning of each
WITHIN = 20.0
ENOUGH = 3  # mismatches: what follows are their consequences


class Breeder:
    """Starts and kills watchers."""

    def __init__(self, stage: Stage) -> None:
        self.log_path = stage.directory / "log"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(stage.directory / "notify"))
        self.pid = 0
        with self.log_path.open("ab") as log:
            self._process = stage.lab.host.popen(
                *(sys.executable, BREEDER, stage.fake.address, stage.root, stage.state),
                env=stage.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(self) -> None:
        while select.select([self._notify], [], [], 0)[0]:  # of who was killed
            self._notify.recv(65536)
        self._process.stdin.write("one\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        self.pid = int(self._process.stdout.readline())  # type: ignore[union-attr]

    def ready(self) -> bool:
        """Wait for READY=1; False when it does not come."""
        deadline = time.monotonic() + WITHIN
        while time.monotonic() < deadline and Path(f"/proc/{self.pid}").exists():
            if select.select([self._notify], [], [], 0.05)[0] and b"READY=1" in self._notify.recv(65536):
                return True
        return False

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{self.pid}").exists(), every=0.002, what="the end of a killed watcher")

    def close(self) -> None:
        self.kill()
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(10)
        self._notify.close()


class Kills:
    """Watchers of one seed, killed one after the other."""

    def __init__(self, seed: int, say: Callable[[str], None]) -> None:
        self.killed = self.killed_at_start = self.compared = 0
        self.slowest = 0.0
        self.mismatches: list[str] = []
        self.sizes: list[Size] = []
        self._random, self._seed, self._say = random.Random(seed), seed, say
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stage = stage = stack.enter_context(Stage(4))
            self.breeder = Breeder(stage)
            stack.callback(self.breeder.close)
            at, publish = stage.places[0][0], f"{LINE_PORT}:{ECHO_PORT}"
            stage.do(lambda fake: fake.start(add(fake, "anchor", publish), pid=at))
            self.breeder.start()
            if not self.breeder.ready():
                raise AssertionError(f"the first watcher did not become ready:\n{self.log}")
            self._line = stack.enter_context(Line(stage.lab.remote, HOST4, LINE_PORT))
            self._talker = Talker(stage.lab.remote, HOST4, TALK_PORT)
            stack.callback(self._talker.close)
            self.churn = Churn(stage, self._seed)
            stack.callback(self.churn.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def log(self) -> str:
        return self.breeder.log_path.read_text(errors="replace")

    def run(self, number: int) -> None:
        """Kill so many."""
        while self.killed < number and len(self.mismatches) <= ENOUGH:
            self.churn.move()
            time.sleep(self._random.uniform(0, WORK_SECONDS))
            self._replace()
            while self.killed < number and self._random.random() < AT_START:
                time.sleep(self._random.uniform(0, START_SECONDS))
                self.killed_at_start += 1
                self._replace()
            ready = self.breeder.ready()
            self.churn.stand_still()
            self._compare() if ready else self._mismatch("the next watcher did not become ready")
            if self.compared % 50 == 0:
                self._say(f"{self.killed} kills, {self.compared} comparisons, {len(self.mismatches)} mismatches")
        if "Traceback" in self.log:  # of a watcher that goes on, or ended by itself
            self._mismatch(f"a traceback in the log:\n{self.log[self.log.index('Traceback') :][:3000]}")

    def _replace(self) -> None:
        self.breeder.kill()
        self.killed += 1
        self.breeder.start()

    def _compare(self) -> None:
        stage = self._stage
        self.compared += 1
        self.sizes.append(Size.of(self.breeder.pid))
        found, granted, took = stage.converged(within=WITHIN)
        self.slowest = max(self.slowest, took)
        for text in found:
            self._mismatch(text)
        if found:
            return
        talkers = [stage.place_of(m) for m in granted if (m.protocol, m.ports[0]) == ("udp", TALK_PORT)]
        began = time.monotonic()
        while (left := stage.stray()) and time.monotonic() - began < WITHIN:
            time.sleep(0.05)
        for text in (self._talker.hears(talkers), self._line.echoes(), *left):
            if text:
                self._mismatch(text)

    def _mismatch(self, text: str) -> None:
        self.mismatches.append(text)
        self._say(f"MISMATCH after kill {self.killed}: {text}")


def kills(number: int, seed: int, say: Callable[[str], None]) -> int:
    """Kill so many watchers, and say what came of it; gives the exit code."""
    began = time.monotonic()
    with Kills(seed, say) as running:
        running.run(number)
        if running.mismatches:
            say(f"the watchers' log:\n{running.log[-20000:]}")
        did = running.churn.did.most_common()
    say(f"seed {seed}, {time.monotonic() - began:.0f} s")
    say(f"kills:       {running.killed}, of them {running.killed_at_start} in a start")
    say(f"churn:       {', '.join(f'{value} {name}' for name, value in did)}")
    say(f"comparisons: {running.compared}, the slowest convergence after READY {running.slowest:.2f} s")
    say(f"watchers:    the first had {running.sizes[0]}, the last {running.sizes[-1]}")
    say(f"mismatches:  {len(running.mismatches)}")
    return 1 if running.mismatches else 0
