"""Case `change`: one port published and taken back beside many others, in the daemon.

Each number of mappings has a process (bench.refresher) of its own, as each watcher has: garbage collection and
memory of one say nothing of another. They take turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench.stats import OURS, Aim, Series, quotient
from lab import Lab

if TYPE_CHECKING:
    from bench.bench import Bench

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


class _Worker:
    """One daemon's passes in a process of their own, on the host of a lab of their own."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._stack = ExitStack()
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            lab = stack.enter_context(Lab())
            lab.bridge("br0", "198.51.100.1/24")
            inside = lab.container_like("many", "br0", "198.51.100.2/24", gateway4="198.51.100.1")
            # Whose addresses are read, for each of the containers.
            asked = inside.popen("sleep", "infinity")
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ctrport-bench-"))
            self._process = lab.host.popen(
                *(sys.executable, "-m", "bench.refresher", directory, str(asked.pid), str(self._size)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
            )
            self._read()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turn(self, changes: int) -> dict[str, list[float]]:
        """Make so many changes; gives milliseconds by kind."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{changes}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the worker with {self._size} mappings ended; its words are above")
        return json.loads(line)
