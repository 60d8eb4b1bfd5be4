"""Containers of the fake that come and go, and reservations that are given up, until they are to stand still."""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from soak.answers import UDP_PORT
from soak.stage import Stage, add
from soak.world import HOST4, TALK_PORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrport.model.workload import Key
    from fakes import FakeContainerd

CONTAINERS = 30
WITHIN = 20.0


class Churn:
    """Containers that come and go, events that are wrong, and reservations; until told to stand still."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.did: Counter[str] = Counter()
        self._stage, self._random = stage, random.Random(seed)
        self._moving, self._stopped = threading.Event(), False
        self._still = threading.Barrier(3)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._containers, self._reserve)]
        self._numbers = iter(range(10**9))
        for thread in self._threads:
            thread.start()

    def move(self) -> None:
        self._moving.set()
        self._still.wait(WITHIN)

    def stand_still(self) -> None:
        """Give back once nothing moves."""
        self._moving.clear()
        self._still.wait(WITHIN)

    def close(self) -> None:
        self._stopped = True
        with contextlib.suppress(threading.BrokenBarrierError):
            self._still.abort()
        for thread in self._threads:
            thread.join(5)

    def _while_moving(self, act: Callable[[], None]) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            while not self._stopped:
                self._still.wait()  # all begin
                while self._moving.is_set() and not self._stopped:
                    act()
                self._still.wait()  # all stand still

    def _containers(self) -> None:
        def act() -> None:
            time.sleep(self._random.expovariate(1 / 0.006))
            number, what = self._random.randrange(CONTAINERS), self._random.random()
            self._stage.do(lambda fake: self._change(fake, number, what))

        self._while_moving(act)

    def _change(self, fake: FakeContainerd, number: int, what: float) -> None:
        name = f"c{number}"
        key = next((key for key in fake.records if key.id == name), None)
        running = key in fake.processes and fake.processes[key].status == 2
        if key is None:
            add(fake, name, _publish(number, self._random))
            self.did["created"] += 1
        elif what < 0.1:
            fake.delete(key)
            self.did["deleted"] += 1
        elif what < 0.2:
            fake.exit(key, exec_id="x") if running else None
            self.did["events of an exec"] += 1
        elif running and what < 0.8:
            fake.exit(key)
            self.did["exited"] += 1
        elif not running:
            fake.start(key, pid=self._random.choice(self._stage.places)[0])
            self.did["started"] += 1

    def _reserve(self) -> None:
        def act() -> None:
            key = self._stage.reservation(next(self._numbers))
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
                link.settimeout(2)
                link.connect(str(self._stage.state / "watch.sock"))
                link.sendall(_reserve_request(self._stage, key))
                self.did["reserved"] += 1
                select.select([link], [], [], self._random.uniform(0, 0.3))
            time.sleep(0.02)

        self._while_moving(act)


def _publish(number: int, rng: random.Random) -> str:
    base = 9000 + 10 * number
    choices = (
        f"{base}:80",
        f"{base}:{UDP_PORT}/udp, {base + 1}-{base + 4}:80-83",
        f"{HOST4}:{base}:80, 8090:80",
        f"8200-8260:80, {base}:80",
        f"{TALK_PORT}:{UDP_PORT}/udp",
    )
    return rng.choice(choices)


def _reserve_request(stage: Stage, key: Key) -> bytes:
    common = {"containerd": stage.fake.address, "container": list(key), "network": "default"}
    requests: list[dict[str, Any]] = [
        {"operation": "reserve", **common, "labels": {}},
        {"operation": "connect", **common, "publish": "8300-8320:80", "ip": None},
    ]
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)
