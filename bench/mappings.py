"""Case `change`: one port published and taken back beside many others, in the daemon.

Each number of mappings has a process (bench.refresher) of its own, as each watcher has: garbage collection and
memory of one say nothing of another. They take turns.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.stats import OURS, Aim, Series, quotient
from bench.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from bench.bench import Bench
    from lab import Lab, Netns

TURN = 20  # changes before the next one's turn
RULE, FLOOR = "iptables -A, one rule", "python3-nftables alone"


def change(bench: Bench) -> None:
    """Measure Reconciler.refresh for one container's port beside 1, 1,000, 10,000 and 50,000 mappings."""
    sizes = [size for size in bench.sizes() if size != 100]
    samples: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        workers = {size: stack.enter_context(_Worker(size)) for size in sizes}
        for number in range(bench.rounds(11, 2)):
            for size, worker in workers.items():
                for kind, found in worker.turn(TURN).items():
                    if number > 0:  # the first turn warms up
                        samples.setdefault((kind, size), []).extend(found)
    for (kind, size), found in samples.items():
        what, who = f"{kind} 1 into {size:,}", OURS
        if kind == "element":
            what, who = f"publish 1 into {size:,}", FLOOR
        x = size if kind in {"publish", "element"} else None
        bench.add(Series(case="change", what=what, who=who, samples=tuple(found), x=x))
    least, most = f"publish 1 into {sizes[0]:,}", f"publish 1 into {sizes[-1]:,}"
    median = bench.results.median
    flat = quotient(median("change", most), median("change", least))
    bench.aim(Aim(case="change", what=f"into {sizes[-1]:,}, of into 1", value=flat, limit=1.5))
    bench.aim(Aim(case="change", what=f"into {sizes[-1]:,}", value=median("change", most), limit=1, unit="ms"))


class _Worker(Worker):
    """One daemon's passes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} mappings")
        self._size = size

    def _prepare(self, stack: ExitStack, lab: Lab, container: Netns) -> tuple[Netns, tuple[str | Path, ...]]:
        asked = container.popen("sleep", "infinity")  # whose addresses are read, for each of the containers
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ctrport-bench-"))
        return lab.host, ("-m", "bench.refresher", directory, str(asked.pid), str(self._size))

    def turn(self, changes: int) -> dict[str, list[float]]:
        """Make so many changes; gives milliseconds by kind."""
        found: dict[str, list[float]] = self.tell(str(changes))
        return found
