"""What people read of a run: versions, the table, the aims; and the generated part of docs/performance.md."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.stats import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.stats import Aim, Results

PACKAGES = (
    *("containerd", "runc", "nftables", "iptables", "docker.io", "podman", "netavark"),
    *("containernetworking-plugins", "python3"),
)
BEGIN, END = "<!-- made by scripts/bench --write-docs -->", "<!-- end of what scripts/bench made -->"
MARK = {True: "yes", False: "**no**"}


def versions() -> dict[str, str]:
    """Give what ran: Debian's versions of the packages, kernel and processors."""
    found = {"kernel": platform.release()}
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        models = re.findall(r"^model name\s*: (.*)$", file.read(), flags=re.MULTILINE)
    found["processors"] = f"{len(models)} x {models[0]}" if models else platform.machine()
    found["load at the end"] = " ".join(Path("/proc/loadavg").read_text("ascii").split()[:3])
    for package in PACKAGES:
        query = ["dpkg-query", "--show", "--showformat=${Version}", package]
        result = subprocess.run(query, check=False, capture_output=True, text=True, timeout=10)
        found[package] = result.stdout if result.returncode == 0 and result.stdout else "not installed"
    return found


def table(results: Results) -> list[list[str]]:
    """Give the rows: case, what, who, samples, median, spread, ratio."""
    rows = [["case", "what", "who", "n", "median", "p10 to p90", "p99", "ours is"]]
    for one in results.series:
        if not one.samples:
            rows.append([one.case, one.what, one.who, "0", f"missing: {one.missing}", "", "", ""])
            continue
        ratio = results.ratio(one)
        many = len(one.samples) > 1
        rows.append(
            [
                *(one.case, one.what, one.who, str(len(one.samples)), f"{number(one.median)} {one.unit}"),
                f"{number(one.quantile(0.1))} to {number(one.quantile(0.9))}" if many else "",
                number(one.quantile(0.99)) if len(one.samples) >= 100 else "",
                f"{number(ratio)} of it" if ratio is not None else "",
            ]
        )
    return rows


def aims(found: Iterable[Aim]) -> list[list[str]]:
    """Give the rows: case, what, limit, found, met."""
    rows = [["case", "aim", "limit", "found", "met"]]
    for aim in found:
        value = "nothing" if aim.value is None else f"{number(aim.value)} {aim.unit}".rstrip()
        sign = "≥" if aim.at_least else "≤"
        rows.append([aim.case, aim.what, f"{sign} {number(aim.limit)} {aim.unit}".rstrip(), value, MARK[aim.met]])
    return rows


def number(value: float) -> str:
    """Give three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Give columns that line up, for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Give a table of a document; ours stands out."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    lines += [f"| {' | '.join(f'**{c}**' if c == OURS else c for c in row)} |" for row in rows[1:]]
    return "\n".join(lines)


def document(
    results: Results, found: dict[str, str], curves: Iterable[tuple[str, str]], *, quick: bool = False
) -> str:
    """Give the generated part of docs/performance.md."""
    said = " · ".join(f"{name} {version}" for name, version in found.items())
    parts = [
        *(
            ["Taken with `--quick`: few samples, which show what is measured and not how fast anything is."]
            if quick
            else []
        ),
        f"Versions: {said}.",
        "### Aims\n\n" + as_markdown(aims(results.aims)),
        "### Everything\n\n" + as_markdown(table(results)),
        *(f"![{title}]({path})" for title, path in curves),
    ]
    return "\n\n".join(parts)


def write(page: Path, text: str) -> None:
    """Put the generated part between its marks."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"bench: {page} lacks the lines {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", "utf-8")
