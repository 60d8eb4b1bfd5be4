"""One place that renders: tables for people, one JSON object with a version for programs."""

from __future__ import annotations

import enum
import json
import sys
from typing import TYPE_CHECKING, Any

from ctrport.log import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrport.errors import CtrportError

VERSION = 1  # of the JSON objects; it changes when a field changes its meaning or goes away
GAP = "   "


class Format(enum.StrEnum):
    """What to print."""

    TABLE = "table"
    JSON = "json"


def print_json(**fields: Any) -> None:
    """Print one object."""
    print(json.dumps({"version": VERSION, **fields}, indent=2))


def print_lines(lines: Sequence[str]) -> None:
    """Print lines as they are, but for control characters."""
    for line in lines:
        print(printable(line))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as they need to be; a cell with line feeds takes several lines."""
    cells = [[printable(cell).split("\n") for cell in row] for row in rows]
    widths = [
        max([len(title), *(len(line) for row in cells for line in row[column])])
        for column, title in enumerate(header)
    ]
    print(_line(header, widths))
    for row in cells:
        for number in range(max(len(cell) for cell in row)):
            print(_line([cell[number] if number < len(cell) else "" for cell in row], widths))


def print_error(error: CtrportError) -> None:
    """Print what went wrong and what mends it."""
    print(f"ctrport: {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  mend: {printable(error.hint)}", file=sys.stderr)


def note(text: str) -> None:
    """Print what is worth knowing and no data."""
    print(f"ctrport: {printable(text)}", file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning."""
    print(f"ctrport: warning: {printable(text)}", file=sys.stderr)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
