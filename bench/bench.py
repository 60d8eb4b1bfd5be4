"""One run of the benchmark: what the cases share, and what they hand in."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.stats import Aim, Results, Series

if TYPE_CHECKING:
    from contextlib import ExitStack

    from bench.peers import Cast


@dataclass(slots=True)
class Bench:
    """Peers, results, and how much is wanted."""

    quick: bool
    stack: ExitStack
    cast: Cast
    results: Results = field(default_factory=Results)

    def rounds(self, many: int, few: int) -> int:
        """Give how many samples to take."""
        return few if self.quick else many

    def sizes(self) -> tuple[int, ...]:
        """Give the numbers of mappings of the curves."""
        return (1, 1000) if self.quick else (1, 100, 1000, 10000, 50000)

    def add(self, series: Series) -> None:
        self.results.series.append(series)

    def aim(self, aim: Aim) -> None:
        self.results.aims.append(aim)

    @staticmethod
    def say(text: str) -> None:
        """Tell how it goes, beside the results."""
        print(f"bench: {text}", file=sys.stderr, flush=True)
