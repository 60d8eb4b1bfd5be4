"""The daemon's passes without a containerd: its answers are in a dictionary, so that only our own work is measured.

python -m bench.refresher DIRECTORY PID SIZE: published ports are SIZE, all of the namespace of process PID. For
each number that comes in, so many ports are published and taken back; out goes a line of JSON, times in ms by kind.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from ctrport.config import Config, Settings
from ctrport.containerd.client import Client
from ctrport.errors import NotFoundError
from ctrport.firewall.nft import LibNft
from ctrport.host.reservation import Reservation
from ctrport.model.annotations import PUBLISH
from ctrport.model.workload import Container, Key, Status, Task
from ctrport.reconcile import Reconciler

FIRST, EACH = 10000, 1000  # ports of each container, but for the last
EXTRA = 9000


class Answers(Client):
    """What containerd would say, at once."""

    def __init__(self, pid: int) -> None:
        super().__init__("/nowhere")
        self._pid = pid
        self.there: dict[Key, Container] = {}

    def start(self, name: str, publish: str) -> Key:
        key = Key("default", name)
        self.there[key] = container(key, publish)
        return key

    async def namespaces(self) -> list[str]:
        return ["default"]

    async def containers(self, namespace: str, *_filters: str) -> list[Container]:
        return [one for one in self.there.values() if one.key.namespace == namespace]

    async def container(self, key: Key) -> Container:
        if key not in self.there:
            raise NotFoundError(f"no container {key}")
        return self.there[key]

    async def task(self, key: Key) -> Task | None:
        return self._task() if key in self.there else None

    async def tasks(self, namespace: str) -> dict[str, Task]:
        return {key.id: self._task() for key in self.there if key.namespace == namespace}

    def _task(self) -> Task:
        return Task(pid=self._pid, status=Status.RUNNING)


def container(key: Key, publish: str) -> Container:
    """Give a record of a container that asks for ports."""
    return Container(key=key, created_at=time.time_ns(), image="web", annotations={PUBLISH: publish})


async def main(directory: Path, pid: int, size: int) -> None:
    """Publish `size` ports and answer requests until there are no more."""
    config = Config(sysctl_directory=None)
    settings = Settings(address="/nowhere", root=directory / "root", state=directory / "state", config=config)
    settings.state.mkdir()
    client, nft = Answers(pid), LibNft()
    for start in range(0, size, EACH):
        first, last = FIRST + start, FIRST + min(start + EACH, size) - 1
        ports = f"{first}-{last}:{first}-{last}" if last > first else f"{first}:{first}"
        client.start(f"c{start}", ports)
    reconciler = Reconciler(settings, client, nft, Reservation())
    await reconciler.resync()
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(await turn(int(line), client, reconciler, nft)), flush=True)


async def turn(changes: int, client: Answers, reconciler: Reconciler, nft: LibNft) -> dict[str, list[float]]:
    """Publish one port and take it back, so many times; and the same by the library alone."""
    found: dict[str, list[float]] = {"publish": [], "unpublish": [], "element": []}
    for _ in range(changes):
        key = client.start("one-more", f"{EXTRA}:80")
        found["publish"].append(await timed(reconciler, key))
        if not reconciler.bindings(key):
            raise AssertionError("nothing was published")
        del client.there[key]
        found["unpublish"].append(await timed(reconciler, key))
    with reconciler.kernel.generation.own():
        nft.apply("add table inet bench; add map inet bench m { type inet_service : ipv4_addr . inet_service; }")
    for _ in range(changes):
        begun = time.perf_counter()
        nft.apply("add element inet bench m { 9001 : 198.51.100.2 . 80 }")
        found["element"].append((time.perf_counter() - begun) * 1000)
        nft.apply("delete element inet bench m { 9001 }")
    nft.apply("delete table inet bench")
    await reconciler.refresh([])  # sees that rules were changed by somebody, and that ours were not
    return found


async def timed(reconciler: Reconciler, key: Key) -> float:
    """Give the milliseconds of one pass."""
    begun = time.perf_counter()
    await reconciler.refresh([key])
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    asyncio.run(main(Path(arguments[0]), int(arguments[1]), int(arguments[2])))
