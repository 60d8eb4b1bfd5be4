"""The command line of the benchmark: scripts/bench [--quick] [--json FILE] [--write-docs] [CASE...]."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bench import connections, containers, daemon, mappings, plot, report
from bench.bench import Bench
from bench.peers import Cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.stats import Results

CASES: dict[str, Callable[[Bench], None]] = {
    "run": containers.run,
    "event": containers.event,
    "change": mappings.change,
    "connect": connections.connect,
    "cold": daemon.cold,
    "heal": daemon.heal,
    "memory": daemon.memory,
    "idle": daemon.idle,
    "cli": containers.cli,
}
DOCS = Path("docs")
CURVES = {
    "connect": ("A new connection through the last of N mappings", "published ports", "µs"),
    "change": ("One port published beside N others", "published ports", "ms"),
    "run": ("From the command to the first answer", "ports of the container", "ms"),
}


def main() -> int:
    """Measure what was asked for, print it, and write what is to be written."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all of them when none is named"
    )
    parser.add_argument("--quick", action="store_true", help="few samples: whether it works, not how fast it is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--write-docs", action="store_true", help="write table and curves into docs/performance.md")
    wanted = parser.parse_args()
    if unknown := set(wanted.cases) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with ExitStack() as stack:
        bench = Bench(quick=wanted.quick, stack=stack, cast=Cast(stack))
        for name in wanted.cases or CASES:
            begun = time.monotonic()
            CASES[name](bench)
            bench.say(f"{name}: {time.monotonic() - begun:.0f} s")
    versions = report.versions()
    print("\n".join(f"{name}: {version}" for name, version in versions.items()), end="\n\n")
    print(report.as_text(report.table(bench.results)), end="\n\n")
    print(report.as_text(report.aims(bench.results.aims)))
    if wanted.json:
        series = [one.to_json() for one in bench.results.series]
        aims = [
            {"case": a.case, "what": a.what, "value": a.value, "limit": a.limit, "met": a.met}
            for a in bench.results.aims
        ]
        document = {"version": 1, "quick": wanted.quick, "versions": versions, "series": series, "aims": aims}
        wanted.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if wanted.write_docs:
        report.write(
            DOCS / "performance.md",
            report.document(bench.results, versions, _curves(bench.results), quick=wanted.quick),
        )
    return 0


def _curves(results: Results) -> list[tuple[str, str]]:
    drawn = []
    for case, (title, x_name, y_name) in CURVES.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for one in results.series:
            if one.case == case and one.x is not None and one.samples:
                lines.setdefault(one.who, []).append((one.x, one.median))
        if lines:
            path = DOCS / "performance" / f"{case}.svg"
            path.parent.mkdir(exist_ok=True)
            path.write_text(plot.curves(title, x_name, y_name, lines), "utf-8")
            drawn.append((title, f"performance/{case}.svg"))
    return drawn


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
