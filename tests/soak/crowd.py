"""Many real containers: all of them published, killed at once, and back at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from soak import kernel
from soak.checks import Quiet
from soak.rounds import Size
from soak.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PORT = 20000
AT_ONCE = 4


def crowd(number: int, say: Callable[[str], None]) -> int:
    """Run so many containers, and compare after each step; gives the exit code."""
    wrong: list[str] = []
    with World() as world, ThreadPoolExecutor(AT_ONCE) as pool:
        rules = kernel.rules(world.lab.host)
        say(f"at the start: {Size.of(world.watcher.pid)}")
        names = [world.containerd.unique("crowd") for _ in range(number)]

        def compare(what: str) -> None:
            began = time.monotonic()
            quiet = Quiet(world, rules)
            containers, granted = quiet.compare()
            if not quiet.mismatches:
                quiet.probe(containers, granted, random.Random(number))
            wrong.extend(f"{what}: {text}" for text in quiet.mismatches)
            say(
                f"{what}: {len(granted)} mappings, {quiet.probes} probes, looked at in "
                f"{time.monotonic() - began:.1f} s; {Size.of(world.watcher.pid)}"
            )

        began = time.monotonic()
        try:
            made = list(pool.map(lambda n: world.run(names[n], "-p", f"{FIRST_PORT + n}:80"), range(number)))
            wrong += [result.stderr for result in made if result.returncode]
            say(f"{number} runs, {AT_ONCE} at a time: {time.monotonic() - began:.1f} s")
            compare("all run")
            world.watcher.kill()
            began = time.monotonic()
            world.watcher.start(within=60)
            say(f"start to READY: {time.monotonic() - began:.2f} s")
            compare("a new watcher")
            lines = world.containerd.ctr("tasks", "list").splitlines()[1:]
            for name, pid, _ in (line.split() for line in lines):
                if name in names:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            compare("all killed at once")
            list(pool.map(lambda name: world.containerd._ctr("tasks", "delete", name), names))
            starts = pool.map(lambda name: world.containerd._ctr("tasks", "start", "--detach", name), names)
            wrong += [start.stderr for start in starts if start.returncode]
            compare("all started again")
        finally:
            list(pool.map(lambda name: world.cli("rm", "-f", name), names))
        compare("all removed")
    for text in wrong:
        say(f"MISMATCH: {text}")
    say(f"mismatches: {len(wrong)}")
    return 1 if wrong else 0
