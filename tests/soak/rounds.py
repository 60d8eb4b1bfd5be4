"""The soak with real containers: rounds of operations and faults, each followed by a quiet point."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from soak import kernel
from soak.checks import Quiet
from soak.faults import FAULTS, Fault
from soak.operations import OPERATIONS, Operation, after, fits, remove
from soak.world import Slot, World

if TYPE_CHECKING:
    from collections.abc import Callable

MISMATCHES_ENOUGH = 3  # then it ends: what follows would be their consequences


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """What a process has."""

    memory: int  # KiB
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Size:
        text = Path(f"/proc/{pid}/status").read_text()
        memory = int(text.split("VmRSS:")[1].split()[0])
        return cls(memory, len(list(Path(f"/proc/{pid}/fd").iterdir())))

    def __str__(self) -> str:
        return f"{self.memory / 1024:.1f} MiB, {self.descriptors} descriptors"


@dataclasses.dataclass
class Tally:
    """What happened."""

    operations: Counter[str] = dataclasses.field(default_factory=Counter)
    idle: int = 0  # operations on containers that had not come into being
    hindered: int = 0  # operations that a fault made fail
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    probes: int = 0
    quiet_points: int = 0
    mismatches: list[str] = dataclasses.field(default_factory=list)
    worst_repair: tuple[float, str] = (0.0, "")
    sizes: dict[int, list[Size]] = dataclasses.field(default_factory=dict)  # of each watcher, by process id


class Soak:
    """Rounds of one seed."""

    def __init__(self, world: World, seed: int, say: Callable[[str], None]) -> None:
        self.tally = Tally()
        self._world = world
        self._plan = random.Random(seed)  # what is done; drawn from in the same way whatever happens
        self._say = say
        self._history: list[str] = []
        self._rules = kernel.rules(world.lab.host)
        self._unclear: list[tuple[Slot, str]] = []  # whose operation a fault made fail, and the container of then
        self._measure()

    def run(self, seconds: float) -> Tally:
        """Make rounds for so long, then remove everything and look once more."""
        deadline = time.monotonic() + seconds
        number = 0
        while time.monotonic() < deadline and len(self.tally.mismatches) < MISMATCHES_ENOUGH:
            number += 1
            self._round(number)
        for slot in self._world.slots:
            if slot.made:
                self._world.cli("--namespace", slot.namespace, "rm", "-f", slot.name)
                self._world.answerer.end(slot.full_name)
        self._history.append("the end: everything removed")
        self._quiet("the end")
        if "Traceback" in self._world.watcher.log:
            where = self._world.watcher.log.index("Traceback")
            self._mismatch([f"a traceback in the watcher's log:\n{self._world.watcher.log[where : where + 3000]}"])
        return self.tally

    def _round(self, number: int) -> None:
        plan = self._plan
        fault = plan.choices(FAULTS, [f.weight for f in FAULTS])[0] if plan.random() < 0.7 else None
        steps = [self._choose() for _ in range(plan.randrange(1, 5))]
        first, last = sorted(plan.randrange(len(steps)) for _ in range(2))
        delay, fault_seed = plan.uniform(0, 0.5), plan.getrandbits(32)
        self._history.append(f"round {number}")
        with contextlib.ExitStack() as during:
            for index, (operation, slot, seed) in enumerate(steps):
                thread = None
                if fault is not None and index == first:
                    thread = threading.Thread(target=self._begin, args=(fault, fault_seed, delay, during))
                    thread.start()
                self._do(operation, slot, seed, hindered=fault is not None and fault.hinders)
                if thread is not None:
                    thread.join()
                if index == last:
                    self._attempt(during.close)
        self._clear_up()
        self._quiet(fault.name if fault else "operations alone")

    def _choose(self) -> tuple[Operation, Slot, int]:
        """Draw a slot and an operation that suits what the plan intends of it."""
        slot = self._plan.choice(self._world.slots)
        fitting = [each for each in OPERATIONS if fits(each, slot)]
        operation = self._plan.choices(fitting, [each.weight for each in fitting])[0]
        slot.kind = _KINDS.get(operation.name, slot.kind)
        slot.intended = after(operation, slot)
        return operation, slot, self._plan.getrandbits(32)

    def _do(self, operation: Operation, slot: Slot, seed: int, *, hindered: bool) -> None:
        if operation.on in {"running", "stopped"} and not slot.made:
            self.tally.idle += 1
            self._history.append(f"  {operation.name} on slot {slot.number}: nothing there")
            return
        self.tally.operations[operation.name] += 1
        try:
            wrong = operation.do(self._world, slot, random.Random(seed))
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            wrong = str(error)
        self._history.append(f"  {operation.name} on slot {slot.number} ({slot.name}): {wrong or 'done'}")
        if wrong and hindered:
            self.tally.hindered += 1
            self._unclear += [(slot, slot.name)] if operation.on else []
        elif wrong:
            self._mismatch([f"{operation.name} on {slot.name}: {wrong}"])
        if operation.leaves == "absent" and not wrong:
            slot.made = False

    def _clear_up(self) -> None:
        """Remove what a fault has left otherwise than the plan intends.

        That is the container of the failed operation and the one that the slot has had since: where the first was
        not removed, the second could not bind its ports.
        """
        # `run` cannot take back what it has made or started while containerd is away.
        while self._world.left_behind:
            self._remove(Slot(0, name=self._world.left_behind.pop()))
        for slot, name in self._unclear:
            for each in dict.fromkeys((name, slot.name)):
                self._remove(dataclasses.replace(slot, name=each))
            slot.made = False
        self._unclear.clear()

    def _remove(self, slot: Slot) -> None:
        if self._is_there(slot):
            wrong = remove(self._world, slot, self._plan)
            if wrong and self._is_there(slot):  # else the watcher was faster, as it was run with --rm
                self._mismatch([f"rm -f of {slot.name}: {wrong}"])

    def _is_there(self, slot: Slot) -> bool:
        return slot.name in self._world.ctr(slot, "containers", "list", "--quiet").stdout.split()

    def _begin(self, fault: Fault, seed: int, delay: float, during: contextlib.ExitStack) -> None:
        time.sleep(delay)
        self._history.append(f"  fault: {fault.name}")
        self.tally.faults[fault.name] += 1
        self._attempt(lambda: during.enter_context(fault.happen(self._world, random.Random(seed))))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            self._mismatch([f"a fault could not be made or ended: {error}"])

    def _quiet(self, cause: str) -> None:
        world, tally = self._world, self.tally
        if not world.watcher.running:
            self._mismatch([f"the watcher has ended by itself:\n{world.watcher.log[-3000:]}"])
            world.watcher.start()
        quiet = Quiet(world, self._rules)
        containers, granted = quiet.compare()
        if not quiet.mismatches:
            quiet.probe(containers, granted, random.Random(len(self._history)))
        tally.quiet_points += 1
        tally.probes += quiet.probes
        tally.worst_repair = max(tally.worst_repair, (quiet.repair, cause))
        self._history.append(f"  quiet after {quiet.repair:.2f} s: {len(granted)} mappings, {quiet.probes} probes")
        self._measure()
        self._mismatch(quiet.mismatches)
        if tally.quiet_points % 20 == 0:
            self._say(
                f"{tally.quiet_points} quiet points, {tally.operations.total()} operations, "
                f"{tally.faults.total()} faults, {len(tally.mismatches)} mismatches; {self._size()}"
            )

    def _size(self) -> Size:
        return Size.of(self._world.watcher.pid)

    def _measure(self) -> None:
        self.tally.sizes.setdefault(self._world.watcher.pid, []).append(self._size())

    def _mismatch(self, found: list[str]) -> None:
        self.tally.mismatches += found
        for text in found:
            self._history.append(f"  MISMATCH: {text}")
            self._say(f"MISMATCH: {text}")

    def history(self) -> str:
        """Give all that was done."""
        return "\n".join(self._history)


# What kind of container an operation makes, as the plan has to know before it is made.
_KINDS = {"run -d -p": "run", "run -d --rm": "rm", "run -d --restart always": "always", "run --network": "run"}


def report(tally: Tally, seed: int, seconds: float) -> list[str]:
    """Give the figures, in lines."""
    lives = list(tally.sizes.values())
    longest = max(lives, key=len)
    done, repair, cause = tally.operations.total(), *tally.worst_repair
    peak = max((size for life in lives for size in life), key=lambda size: size.memory)
    return [
        f"seed {seed}, {seconds / 60:.1f} minutes",
        f"operations:   {done} ({tally.hindered} failed under a fault, {tally.idle} more had nothing to act on)",
        *(f"              {count:5d}  {name}" for name, count in tally.operations.most_common()),
        f"faults:       {tally.faults.total()}",
        *(f"              {count:5d}  {name}" for name, count in tally.faults.most_common()),
        f"quiet points: {tally.quiet_points}, probes by packets: {tally.probes}",
        f"worst repair: {repair:.2f} s ({cause})",
        f"watcher:      {lives[0][0]} at the start, {lives[-1][-1]} at the end, at most {peak}",
        f"              longest life: {longest[0]} -> {longest[-1]}, over {len(longest)} quiet points",
        f"mismatches:   {len(tally.mismatches)}",
    ]


def soak(minutes: float, seed: int, say: Callable[[str], None]) -> int:
    """Soak, and say what came of it; gives the exit code."""
    say(f"seed {seed}: scripts/soak --seed {seed} does the same again")
    began = time.monotonic()
    with World() as world:
        running = Soak(world, seed, say)
        try:
            tally = running.run(minutes * 60)
        except BaseException:
            say(running.history())
            raise
        if tally.mismatches:
            say(running.history())
            say(f"the watcher's log:\n{world.watcher.log[-20000:]}")
    for line in report(tally, seed, time.monotonic() - began):
        say(line)
    return 1 if tally.mismatches else 0
