"""What a machine cannot be made to do: events that lie, calls that hang, an nft that fails. The kernel is real.

The faults are in a containerd without containers, and in a libnftables wrapped for the test: nothing of them is in
the program.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ctrport.containerd.pb import api_pb2 as api
from ctrport.containerd.pb import events_pb2 as ev
from ctrport.errors import HostError, KernelError
from lab import REFUSED, until
from passes import Writer, writing
from soak.answers import ECHO_PORT
from soak.stage import Stage, add
from soak.world import HOST4

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.errors import CtrportError
    from ctrport.model.workload import Key
    from fakes import FakeContainerd
    from lab import Lab

FAILING_NFT = Path(__file__).parents[1] / "failing_nft.py"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage(3) as stage:
        yield stage


def start(stage: Stage, name: str, publish: str, place: int = 0) -> Key:
    """Start a container that asks for ports."""
    return stage.do(lambda fake: _start(fake, name, publish, stage.places[place][0]))


def _start(fake: FakeContainerd, name: str, publish: str, pid: int) -> Key:
    key = add(fake, name, publish)
    fake.start(key, pid=pid)
    return key


def right(stage: Stage) -> bool:
    """Say whether the kernel holds what the containers that run ask for."""
    found, _, _ = stage.converged(within=10)
    assert found == []
    return True


def test_events_that_lie(stage: Stage):
    """Doubled events, old ones after new ones, exits of what runs: the container is looked at, not the event."""
    stage.watch()
    keys = [start(stage, f"c{n}", f"{8000 + n}:{ECHO_PORT}", n % 3) for n in range(6)]

    def lie(fake: FakeContainerd) -> None:
        for key in keys[:3]:  # run, and are told to have exited
            fake.emit("/tasks/exit", key.namespace, ev.TaskExit(container_id=key.id, id=key.id))
            fake.emit("/containers/delete", key.namespace, ev.ContainerDelete(id=key.id))
        for key in keys[3:]:  # exit, and are told to have started, twice, and in the end
            fake.exit(key)
            for _ in range(2):
                fake.emit("/tasks/start", key.namespace, ev.TaskStart(container_id=key.id, pid=1))
        fake.emit("/tasks/exit", "nowhere", ev.TaskExit(container_id="no-such", id="no-such"))

    assert right(stage)
    stage.do(lie)
    assert right(stage)
    assert [stage.echoes(8000 + n) for n in range(6)] == [True] * 3 + [False] * 3


def test_events_that_get_lost(stage: Stage):
    """What no event told of is found by the next full pass."""
    stage.watch(config="resync_seconds = 0.5\n")
    keys = [start(stage, f"c{n}", f"{8000 + n}:{ECHO_PORT}") for n in range(3)]
    assert right(stage)

    def lose(fake: FakeContainerd) -> None:
        subscribers, fake._subscribers = fake._subscribers, set()
        fake.exit(keys[0])
        fake.delete(keys[1])
        _start(fake, "new", f"8010:{ECHO_PORT}", stage.places[1][0])
        fake._subscribers = subscribers

    stage.do(lose)
    assert right(stage)
    assert [stage.echoes(port) for port in (8000, 8001, 8002, 8010)] == [False, False, True, True]


def test_a_socket_that_goes_and_comes(stage: Stage):
    """Removed under a containerd that lives it is missed by nobody who is connected; else all stays as it was."""
    stage.watch(config="resync_seconds = 0.5\n")
    web = start(stage, "web", f"8000:{ECHO_PORT}")
    assert right(stage)
    socket = Path(stage.fake.address)
    socket.rename(socket.with_name("hidden"))
    start(stage, "late", f"8001:{ECHO_PORT}", 1)
    assert right(stage)
    stage.stop_containerd()
    until(lambda: "no events from containerd" in stage.log, what="the watcher's word")
    until(lambda: "a pass failed" in stage.log, what="a pass")
    stage.do(lambda fake: fake.exit(web))
    start(stage, "new", f"8002:{ECHO_PORT}", 2)
    assert [stage.echoes(8000 + n) for n in range(3)] == [True, True, False]
    stage.start_containerd()
    assert right(stage)
    assert [stage.echoes(8000 + n) for n in range(3)] == [False, True, True]


def test_a_table_of_our_name_that_another_process_owns(stage: Stage):
    """The kernel lets nobody else write it. That is told, and the port is back when the process has ended."""
    stage.watch()
    start(stage, "web", f"8000:{ECHO_PORT}")
    assert right(stage)
    owner = stage.lab.host.popen("nft", "-i", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert owner.stdin is not None
    # In one transaction, else the table is put back between the two.
    owner.stdin.write(b"delete table inet ctrport; add table inet ctrport { flags owner; }\n")
    owner.stdin.flush()
    until(lambda: "Operation not permitted" in stage.log, within=30, what="the watcher's word")
    assert not stage.echoes(8000)
    owner.stdin.close()
    owner.wait(10)
    until(lambda: stage.echoes(8000), within=90, what="the port")
    assert right(stage)


def test_a_container_that_hangs(stage: Stage):
    """Questions about one container get no answer: it keeps its ports, and others come and go."""
    stage.watch(config="timeout_seconds = 0.5\nresync_seconds = 1\n")
    hanging, other = start(stage, "hanging", f"8000:{ECHO_PORT}"), start(stage, "other", f"8001:{ECHO_PORT}", 1)
    assert right(stage)
    stage.fake.silent.add(hanging.id)
    stage.do(lambda fake: fake.emit("/containers/update", "default", ev.ContainerUpdate(id=hanging.id)))
    stage.do(lambda fake: fake.exit(other))
    start(stage, "late", f"8002:{ECHO_PORT}", 2)
    assert right(stage)
    assert [stage.echoes(port) for port in (8000, 8001, 8002)] == [True, False, True]
    stage.do(lambda fake: fake.exit(hanging))
    stage.fake.silent.clear()
    assert right(stage)
    assert not stage.echoes(8000)


def test_a_namespace_that_vanishes(stage: Stage):
    """A process that ends while it is looked at has no address; the rest of the pass goes on."""
    stage.watch(config="resync_seconds = 0.5\n")
    gone = start(stage, "gone", f"8000:{ECHO_PORT}")
    start(stage, "stays", f"8001:{ECHO_PORT}", 1)
    assert right(stage)
    # What containerd still says of a process that is no more: 4194304 is above every pid_max.
    stage.do(lambda fake: fake.processes[gone].MergeFrom(api.Process(pid=4194304)))
    until(lambda: not stage.echoes(8000), what="the end of the port")
    assert stage.echoes(8001)
    stage.do(lambda fake: fake.exit(gone))
    assert right(stage)


def test_thousands_of_containers_that_ask_for_nothing(stage: Stage):
    """A listing longer than a gRPC message may be is read in a stream, and costs no question about a task."""
    stage.do(lambda fake: [add(fake, f"idle{n}", "") for n in range(5000)])
    start(stage, "web", f"8000:{ECHO_PORT}")
    stage.watch()
    assert right(stage)
    assert stage.echoes(8000)
    assert stage.fake.calls["tasks_get"] < 10


class Failing:
    """The real nft, until it is told to fail."""

    def __init__(self, real: object) -> None:
        self._real = real
        self.failures: list[CtrportError] = []
        self.tried = 0

    def apply(self, script: str) -> None:
        self.tried += 1
        if self.failures:
            raise self.failures.pop(0)
        self._real.apply(script)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


BUSY = KernelError("nftables refused to change ctrport: Error: Could not process rule: Device or resource busy")
MEMORY = KernelError("nftables refused to change ctrport: Error: Could not process rule: Cannot allocate memory")
DENIED = HostError("nftables refused to change ctrport: Error: Could not process rule: Operation not permitted")


@pytest.fixture
def writer(lab: Lab, tmp_path: Path) -> Iterator[Writer]:
    with writing(lab, tmp_path) as writer:
        yield writer


def fail(writer: Writer, *failures: CtrportError) -> Failing:
    nft = Failing(writer.reconciler.kernel.nft)
    nft.failures = list(failures)
    writer.reconciler.kernel.nft = nft  # type: ignore[assignment]
    return nft


def table(lab: Lab) -> str:
    return lab.host.run("nft", "--stateless", "list", "table", "inet", "ctrport").stdout


def test_a_change_that_is_refused_once(lab: Lab, writer: Writer):
    """A difference that the kernel refuses is no failure: the table is replaced whole, in one transaction."""
    fail(writer, BUSY)
    writer.publish("a", "8080:80")
    assert page(lab) == "a"
    assert writer.states("a") == [("active", "")]


@pytest.mark.parametrize("failure", [BUSY, MEMORY, DENIED], ids=["EBUSY", "ENOMEM", "EPERM"])
def test_an_nft_that_fails(lab: Lab, writer: Writer, failure: CtrportError):
    """A pass that can write nothing says so and leaves the kernel as it was; the next one does all of it."""
    writer.publish("a", "8080:80")
    before = table(lab)
    nft = fail(writer, *[failure] * 2)
    with pytest.raises(type(failure)):
        writer.publish("b", "8081:80, 8082:80/udp")
    assert nft.tried <= 2
    assert (table(lab), page(lab), page(lab, 8081)) == (before, "a", REFUSED)
    nft.failures.clear()
    writer.wait(writer.reconciler.resync())
    assert (page(lab), page(lab, 8081)) == ("a", "b")
    nft.failures = [failure] * 2
    with pytest.raises(type(failure)):
        writer.end("a")
    assert page(lab) == "a"
    nft.failures.clear()
    writer.wait(writer.reconciler.refresh([]))
    assert (page(lab), page(lab, 8081)) == (REFUSED, "b")


def page(lab: Lab, port: int = 8080) -> object:
    """Give the name of the container that answers at a port."""
    from lab import Answer, ask  # noqa: PLC0415

    found = ask(lab.remote, HOST4, port)
    return found.name if isinstance(found, Answer) else found


def test_the_watcher_tries_again(stage: Stage):
    """A watcher whose nft fails some times says each time when it tries again, and gets there by itself."""
    watcher: subprocess.Popen[bytes] = stage.watch(program=(str(FAILING_NFT),))
    switch = stage.directory / "fail"
    switch.write_text("5")
    start(stage, "web", f"8000:{ECHO_PORT}")
    until(lambda: stage.echoes(8000), within=30, what="the port")
    assert right(stage)
    pauses = [line.split("next try in ")[1].split(" s")[0] for line in stage.log.splitlines() if "next try" in line]
    assert pauses == [f"{0.1 * 2**n:.1f}" for n in range(len(pauses))]
    assert pauses
    assert "Device or resource busy" in stage.log
    assert watcher.poll() is None
