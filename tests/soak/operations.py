"""What users do: one function and one line in a table for each operation.

An operation is chosen by the seed and by what the plan intends, never by what really happened: the same seed gives
the same sequence, whatever fails. It says whether it came to its end; where a fault is at work it may not.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from typing import TYPE_CHECKING

from lab import until
from soak.world import HOST4, HOST6, LINE_PORT, SECOND4, SHARED, TALK_PORT, UDP_PORT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from random import Random

    from soak.world import Slot, World

    Do = Callable[[World, Slot, Random], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """`do` gives what went wrong; `on` is what the slot must be intended to be, `leaves` what it is then."""

    name: str
    weight: int
    do: Do
    on: str = ""  # absent, running, stopped; "" is any
    leaves: str = ""  # "" is as before
    plain: bool | None = None  # for plain ctr's slots only, or for the others only


def publish(slot: Slot, rng: Random) -> list[str]:
    """Give a few port specs of a slot's own."""
    base = slot.base
    choices = (
        [f"{base}:80"],
        [f"{base}:80", f"{base}:{UDP_PORT}/udp"],
        [f"{HOST4}:{base}:80", f"{SECOND4}:{base}:80"],
        [f"[{HOST6}]:{base}:80", f"0.0.0.0:{base}:80"],
        [f"127.0.0.1:{base}:80", f"{base + 1}:80"],
        [f"{base + 2}-{base + 5}:80-83", f"{base}:{UDP_PORT}/udp"],
        ["8200-8230:80"],
        ["80", f"{base}:80"],
        [f"{base}:80", f"{TALK_PORT}:{UDP_PORT}/udp"],
        [f"{base}:80", f"{rng.choice(SHARED)}:80"],
    )
    return rng.choice(choices)


def _new(world: World, slot: Slot, kind: str) -> None:
    slot.name, slot.kind, slot.made = world.containerd.unique(f"s{slot.number}"), kind, False


def _made(world: World, slot: Slot, result: subprocess.CompletedProcess[str]) -> str:
    slot.made = result.returncode == 0
    if slot.made:
        world.serve(slot)
    return _failure(result)


def _failure(result: subprocess.CompletedProcess[str]) -> str:
    said = (result.stderr or result.stdout).strip().splitlines()
    return f"exit code {result.returncode}: {said[-1] if said else ''}" if result.returncode else ""


def _exclusive(specs: list[str]) -> list[str]:
    """Leave out ports that other containers may have: `run` is refused with them, and rightly."""
    contested = tuple(f"{port}:" for port in (*SHARED, TALK_PORT))
    return [spec for spec in specs if not spec.startswith(contested)]


def run(world: World, slot: Slot, rng: Random, kind: str = "run", *options: str) -> str:
    _new(world, slot, kind)
    words = [word for spec in _exclusive(publish(slot, rng)) for word in ("-p", spec)]
    return _made(world, slot, world.run(slot.name, *words, *options))


def run_rm(world: World, slot: Slot, rng: Random) -> str:
    return run(world, slot, rng, "rm", "--rm")


def run_always(world: World, slot: Slot, rng: Random) -> str:
    return run(world, slot, rng, "always", "--restart", "always")


def run_on_network(world: World, slot: Slot, rng: Random) -> str:
    network = rng.choice(("net0", "net1"))
    world.cli("network", "create", network)  # refused where it is there
    return run(world, slot, rng, "run", "--network", network)


def remove_network(world: World, _slot: Slot, rng: Random) -> str:
    world.cli("network", "rm", rng.choice(("net0", "net1")))  # refused while it is used, or not there
    return ""


def run_taken(world: World, slot: Slot, _rng: Random) -> str:
    """Ask for a port that the anchor has, which must be refused. The model would see what it left behind."""
    name = world.containerd.unique(f"t{slot.number}")
    result = world.run(name, "-p", f"{LINE_PORT}:80")
    if result.returncode == 0:
        world.cli("rm", "-f", name)
        return f"run -p {LINE_PORT}:80 went through, and the port is taken"
    if f"could not take back default/{name}" in result.stderr:  # made while containerd was there
        world.left_behind.append(name)
    return "" if f"{LINE_PORT}/tcp is held by" in result.stderr else _failure(result)


def run_plain(world: World, slot: Slot, rng: Random) -> str:
    _new(world, slot, "plain")
    return _made(world, slot, world.run_plain(slot, ", ".join(publish(slot, rng))))


def stop(world: World, slot: Slot, _rng: Random) -> str:
    return _failure(world.cli("--namespace", slot.namespace, "stop", "-t", "1", slot.name))


def kill(world: World, slot: Slot, rng: Random) -> str:
    """Kill the container's process behind everybody's back, by signal or by ctr."""
    pid = _task(world, slot)
    if rng.random() < 0.5:
        os.kill(pid, signal.SIGKILL)
        return ""
    return _failure(world.ctr(slot, "tasks", "kill", "-s", "KILL", slot.name))


def _task(world: World, slot: Slot) -> int:
    """Give the task's process id; wait for one that containerd's restart monitor has yet to start."""
    return until(lambda: world.task_pid(slot), within=10, what=f"a task of {slot.name}") or 0


def start(world: World, slot: Slot, _rng: Random) -> str:
    """Start a container's task again with plain ctr."""
    until(lambda: world.task_pid(slot) is None, what=f"the end of {slot.name}")
    world.ctr(slot, "tasks", "delete", slot.name)  # there after a kill, not after a stop
    return _failure(world.ctr(slot, "tasks", "start", "--detach", slot.name))


def start_ours(world: World, slot: Slot, _rng: Random) -> str:
    return _failure(world.cli("--namespace", slot.namespace, "start", slot.name))


def publish_more(world: World, slot: Slot, rng: Random) -> str:
    spec = f"{slot.base + rng.randrange(6, 9)}:80"
    result = world.cli("--namespace", slot.namespace, "publish", slot.name, spec)
    if result.returncode == 0:
        world.published.setdefault(slot.full_name, set()).add(spec)
    return _failure(result)


def unpublish(world: World, slot: Slot, rng: Random) -> str:
    """Withdraw what was published live; a port more at first, so that there is one."""
    wrong = publish_more(world, slot, rng)
    for spec in sorted(world.published.get(slot.full_name, ())):
        if wrong := wrong or _failure(world.cli("--namespace", slot.namespace, "unpublish", slot.name, spec)):
            return wrong
        world.published[slot.full_name].discard(spec)
    return wrong


def remove(world: World, slot: Slot, _rng: Random) -> str:
    result = world.cli("--namespace", slot.namespace, "rm", "-f", slot.name)
    world.answerer.end(slot.full_name)
    return _failure(result)


def pause(world: World, slot: Slot, _rng: Random) -> str:
    """Pause and resume: the mapping stays."""
    _task(world, slot)
    result = world.ctr(slot, "tasks", "pause", slot.name)
    return _failure(result) or _failure(world.ctr(slot, "tasks", "resume", slot.name))


def execute(world: World, slot: Slot, rng: Random) -> str:
    """Let an exec'ed process end, which says nothing of the container."""
    _task(world, slot)
    words = ("tasks", "exec", "--exec-id", f"x{rng.randrange(10**9)}", slot.name, "true")
    return _failure(world.ctr(slot, *words))


def sync(world: World, _slot: Slot, _rng: Random) -> str:
    return _failure(world.cli("sync"))


def look(world: World, _slot: Slot, _rng: Random) -> str:
    return _failure(world.cli("ps", "-a", "--format", "json"))


OPERATIONS = (
    Operation("run -d -p", 10, run, on="absent", leaves="running", plain=False),
    Operation("run -d --rm", 3, run_rm, on="absent", leaves="running", plain=False),
    Operation("run -d --restart always", 3, run_always, on="absent", leaves="running", plain=False),
    Operation("run --network", 4, run_on_network, on="absent", leaves="running", plain=False),
    Operation("run with a taken port", 2, run_taken),
    Operation("ctr run with an annotation", 12, run_plain, on="absent", leaves="running", plain=True),
    Operation("network rm", 2, remove_network),
    Operation("stop", 6, stop, on="running", leaves="stopped"),
    Operation("kill -9 of the task", 6, kill, on="running", leaves="stopped"),
    Operation("start again", 10, start, on="stopped", leaves="running"),
    Operation("ctrport start", 4, start_ours, on="stopped", leaves="running", plain=False),
    Operation("publish", 6, publish_more, on="running"),
    Operation("unpublish", 5, unpublish, on="running"),
    Operation("rm -f, running", 3, remove, on="running", leaves="absent"),
    Operation("rm -f, stopped", 3, remove, on="stopped", leaves="absent"),
    Operation("pause and resume", 2, pause, on="running"),
    Operation("exec", 2, execute, on="running"),
    Operation("sync", 2, sync),
    Operation("ps", 2, look),
)


def fits(operation: Operation, slot: Slot) -> bool:
    """Say whether an operation suits what the plan intends of a slot.

    What was to run always and was stopped is kept stopped by containerd, which kills whoever starts it.
    """
    if operation.do is start and slot.kind == "always":
        return False  # `ctrport start` tells containerd first
    return operation.on in {"", slot.intended} and operation.plain in {None, slot.plain}


def after(operation: Operation, slot: Slot) -> str:
    """Give what the plan intends a slot to be after an operation."""
    ended = operation.leaves == "stopped"
    if ended and slot.kind == "rm":
        return "absent"
    if ended and slot.kind == "always" and operation.do is kill:
        return "running"  # by containerd's restart monitor
    return operation.leaves or slot.intended
