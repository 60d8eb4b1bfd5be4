"""What was measured, as data: series of samples, aims, and the numbers that describe them. No I/O."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

OURS = "ctrport"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Samples of one thing done by one program. Without samples `missing` says why."""

    case: str
    what: str  # "1 port"
    who: str  # "ctrport", "docker"
    unit: str = "ms"
    samples: tuple[float, ...] = ()
    missing: str = ""
    x: float | None = None  # its place on a curve

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def quantile(self, part: float) -> float:
        """Give the sample below which `part` of them lie, without interpolation."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    def to_json(self) -> dict[str, Any]:
        """Give everything, samples in the order in which they were taken."""
        shown: dict[str, Any] = {"case": self.case, "what": self.what, "who": self.who, "unit": self.unit}
        if self.x is not None:
            shown["x"] = self.x
        if not self.samples:
            return {**shown, "missing": self.missing}
        found = {"median": self.median, **{f"p{p}": self.quantile(p / 100) for p in (10, 90, 99)}}
        return {**shown, **found, "samples": [round(s, 4) for s in self.samples]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What was wanted beside what was found. `value` is None where a peer is missing or nothing came."""

    case: str
    what: str
    value: float | None
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(slots=True)
class Results:
    """Everything that one run of the benchmark found."""

    series: list[Series] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)

    def median(self, case: str, what: str, who: str = OURS) -> float | None:
        """Give the median of one series, None if it has no samples."""
        return next(
            (s.median for s in self.series if (s.case, s.what, s.who) == (case, what, who) and s.samples), None
        )

    def ratio(self, series: Series) -> float | None:
        """Give how many times ours is of another's: below 1 where ours is less."""
        ours = self.median(series.case, series.what)
        if series.who == OURS or ours is None or not series.samples or not series.median:
            return None
        return ours / series.median


def quotient(one: float | None, other: float | None) -> float | None:
    """Divide where both are known."""
    return one / other if one is not None and other else None
