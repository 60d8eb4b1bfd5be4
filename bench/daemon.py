"""Cases about the watcher as a process: `cold`, `heal`, `memory`, `idle`.

It is the program as systemd runs it, over a containerd without containers (tests/fakes) that serves records and
tasks over the real wire from this process. All those containers are in one network namespace with one process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.stats import OURS, Aim, Series
from ctrport import rhythm
from ctrport.containerd.pb import api_pb2 as api
from ctrport.model.workload import Key
from fakes import FakeContainerd, spec
from lab import Lab, Netns, ask, serve
from program import Cli, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.bench import Bench

HOST, FIRST = "192.0.2.1", 10000
EACH = 10  # ports of a container
EVERY = 60.0  # seconds from one full pass to the next, by default
PEACE = 2.2  # seconds from one flush to the next: more often would be taken for a fight, and answered with pauses
SETTLING = 10.0  # seconds after a start, in which the kernel's notices of 20,000 new elements are read
HEAL_PATIENCE = 5.0  # seconds
TICK = 1e9


@dataclasses.dataclass
class _Host:
    """What tests.program.Cli asks of a containerd."""

    lab: Lab
    address: str
    environment: dict[str, str]


@dataclasses.dataclass
class _Stage:
    lab: Lab
    watcher: Watcher
    cli: Cli


@contextmanager
def _stage(mappings: int) -> Iterator[_Stage]:
    """Give a watcher that is not started, for a containerd with so many mappings, 10 a container."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(forwarding=False))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctrport-bench-")))
        lab.bridge("br0", "198.51.100.1/24")
        inside = lab.container_like("many", "br0", "198.51.100.2/24", gateway4="198.51.100.1")
        server = stack.enter_context(serve(inside, 80))
        fake = FakeContainerd(directory / "c.sock")
        for start in range(0, mappings, EACH):
            first, last = FIRST + start, FIRST + min(start + EACH, mappings) - 1
            ports = f"{first}-{last}:80-{80 + last - first}" if last > first else f"{first}:80"
            key = fake.add(Key("default", f"c{start}"), spec({"ctrport.io/publish": ports}))
            fake.processes[key] = api.Process(id=key.id, pid=server.pid, status=api.RUNNING)
        stack.enter_context(_serving(fake))
        host = _Host(lab, fake.address, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        cli = Cli(host, directory)  # type: ignore[arg-type] # all that it asks for
        stack.callback(cli.close)
        yield _Stage(lab, Watcher(cli), cli)


@contextmanager
def _serving(fake: FakeContainerd) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(fake.start_server(), loop).result(10)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(fake.stop_server(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def cold(bench: Bench) -> None:
    """Measure the watcher from its start to READY=1, on a host that has none of its rules yet."""
    sizes = (0, 1000) if bench.quick else (0, 1000, 10000)
    samples: dict[int, list[float]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        stages = {size: stack.enter_context(_stage(size)) for size in sizes}
        for number in range(bench.rounds(8, 2)):
            for size, stage in stages.items():
                stage.lab.host.nft("flush ruleset")
                begun = time.perf_counter()
                stage.watcher.start(within=60)
                if number > 0:
                    samples[size].append((time.perf_counter() - begun) * 1000)
                stage.watcher.terminate()
    for size, found in samples.items():
        what = f"start to READY, {size:,} mappings"
        bench.add(Series(case="cold", what=what, who=OURS, samples=tuple(found)))
    last = f"start to READY, {sizes[-1]:,} mappings"
    bench.aim(Aim(case="cold", what=last, value=bench.results.median("cold", last), limit=1500, unit="ms"))


def heal(bench: Bench) -> None:
    """Measure from `nft flush ruleset` until the port answers again, for some seconds at most."""
    sizes = (1,) if bench.quick else (1, 10000)
    for size in sizes:
        with _stage(size) as stage:
            stage.watcher.start(within=60)
            found = []
            for _ in range(bench.rounds(10, 2)):
                stage.lab.host.nft("flush ruleset")
                begun = time.perf_counter()
                if not _answers_again(stage.lab.remote):
                    break
                found.append((time.perf_counter() - begun) * 1000)
                time.sleep(PEACE)
            stage.watcher.terminate()
        what = f"flush to answered, {size:,} mappings"
        missing = "" if found else f"not healed within {HEAL_PATIENCE:g} s"
        bench.add(Series(case="heal", what=what, who=OURS, samples=tuple(found), missing=missing))


def _answers_again(remote: Netns) -> bool:
    def attempt() -> bool:
        with socket.socket() as client:
            client.settimeout(0.5)
            return client.connect_ex((HOST, FIRST)) == 0

    def attempts() -> bool:
        deadline = time.monotonic() + HEAL_PATIENCE
        while not attempt():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    return remote.call(attempts)


def memory(bench: Bench) -> None:
    """Measure resident memory beside 0, 1,000 and 10,000 mappings, and Docker's beside 100."""
    for size in (0, 1000) if bench.quick else (0, 1000, 10000):
        with _stage(size) as stage:
            stage.watcher.start(within=60)
            assert isinstance(ask(stage.lab.remote, HOST, FIRST), object)
            found = resident(stage.watcher.pid)
            stage.watcher.terminate()
        what = f"resident, {size:,} mappings"
        bench.add(Series(case="memory", what=what, who=OURS, unit="MB", samples=(found,)))
        limit = 75.0 if size == 10000 else 60.0
        bench.aim(Aim(case="memory", what=what, value=found, limit=limit, unit="MB"))
    if bench.quick:
        return
    docker = bench.cast.docker()
    if docker is None:
        bench.add(Series(case="memory", what="dockerd", who="docker", missing=bench.cast.missing["docker"]))
        return
    before = resident(docker.docker.pid)
    container = docker.run(100)
    proxies = [resident(pid) for pid in _children(docker.docker.pid, "docker-proxy")]
    docker.remove(container)
    bench.add(Series(case="memory", what="dockerd, no container", who="docker", unit="MB", samples=(before,)))
    what = f"its {len(proxies)} proxies of 100 ports"
    bench.add(Series(case="memory", what=what, who="docker", unit="MB", samples=(sum(proxies),)))


def idle(bench: Bench) -> None:
    """Measure processor time and wake-ups of a watcher that nothing happens to, and of dockerd.

    Where the watcher rests longer between two full passes than is measured, what one costs is added in proportion.
    """
    seconds = 5.0 if bench.quick else 90.0
    sizes = (0,) if bench.quick else (0, 10000)
    with ExitStack() as stack:
        pids: dict[tuple[str, str], int] = {}
        stages: dict[str, _Stage] = {}
        for size in sizes:
            stage = stack.enter_context(_stage(size))
            stage.watcher.start(within=60)
            stack.callback(stage.watcher.kill)
            what = f"{size:,} mappings"
            pids[what, OURS], stages[what] = stage.watcher.pid, stage
        if not bench.quick and (docker := bench.cast.docker()) is not None:
            pids["no container", "docker"] = docker.docker.pid
        time.sleep(1.0 if bench.quick else SETTLING)
        before = {key: spent(pid) for key, pid in pids.items()}
        time.sleep(seconds)
        for key, pid in pids.items():
            what, who = key
            used, woken = (now - then for now, then in zip(spent(pid), before[key], strict=True))
            share = used / seconds * 100
            if who == OURS:
                cost = _pass(stages[what])
                rest = rhythm.rest(EVERY, cost)
                share += cost / rest * 100 if rest > seconds else 0.0
            bench.add(Series(case="idle", what=f"{what}: processor", who=who, unit="%", samples=(share,)))
            waking = f"{what}: wake-ups"
            bench.add(Series(case="idle", what=waking, who=who, unit="/s", samples=(woken / seconds,)))
            if who == OURS:
                bench.aim(Aim(case="idle", what=f"{what}: processor", value=share, limit=0.1, unit="%"))


def _pass(stage: _Stage) -> float:
    """Make a full pass and give the processor time that it takes, in seconds."""
    before, _ = spent(stage.watcher.pid)
    stage.cli("sync", check=True)
    return spent(stage.watcher.pid)[0] - before


def spent(pid: int) -> tuple[float, float]:
    """Give a process's processor time in seconds and how often its threads went to sleep of themselves."""
    used = woken = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        used += int((thread / "schedstat").read_text("ascii").split()[0]) / TICK
        woken += next(
            int(line.split()[1])
            for line in (thread / "status").read_text("ascii").splitlines()
            if line.startswith("voluntary_ctxt")
        )
    return used, woken


def resident(pid: int) -> float:
    """Give a process's resident memory in megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def _children(pid: int, name: str) -> list[int]:
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    every = [int(child) for path in listed for child in path.read_text("ascii").split()]
    return [child for child in every if Path(f"/proc/{child}/comm").read_text("utf-8").strip() == name]
