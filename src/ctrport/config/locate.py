"""Where in a TOML text a key stands. tomllib tells the line of what it cannot read, and forgets all others.

Works on text that tomllib has read: it tells statements apart, and does not judge them. What stands within a value
(an array, an inline table) is on the line where its key is.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Path = tuple[str | int, ...]  # keys, and the number of the element where a key is an array of tables

_TOKEN = re.compile(
    r"""
    (?P<string> \"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\])*" | '[^']*' )
  | (?P<comment> \#[^\n]* )
  | (?P<open> [\[{] )
  | (?P<close> [\]}] )
  | (?P<end> \n )
  | .
    """,
    re.VERBOSE | re.DOTALL,
)
_PART = r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """Give the line where a key is written, or what of its path is; from 1. None if nothing of it is."""
    lines: dict[Path, int] = {}
    for found, line in _keys(text):
        for length in range(1, len(found) + 1):
            lines.setdefault(found[:length], line)
    wanted = tuple(path)
    return next((lines[wanted[:n]] for n in range(len(wanted), 0, -1) if wanted[:n] in lines), None)


def _keys(text: str) -> Iterator[tuple[Path, int]]:
    """Yield every key that is written out, with its line."""
    table: Path = ()
    arrays: dict[Path, int] = {}  # how many elements each array of tables has so far
    for line, statement in _statements(text):
        header = re.match(r"\[+", statement)
        match = _KEY.match(statement[header.end() :].lstrip(" \t") if header else statement)
        if match is None:
            continue
        path = _parts(match[0])
        if header is None:
            yield (*table, *path), line
            continue
        table = ()
        for number, part in enumerate(path, start=1):
            table = (*table, part)
            if len(header[0]) > 1 and number == len(path):
                arrays[table] = arrays.get(table, 0) + 1
            if table in arrays:
                table = (*table, arrays[table] - 1)
        yield table, line


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each header and each `key = value` without its comments, and the line where it begins."""
    line, begun, depth = 1, 1, 0
    statement = ""
    for token in _TOKEN.finditer(f"{text}\n"):
        kind, word = token.lastgroup, token[0]
        if not statement.strip():
            statement, begun = "", line
        depth += (kind == "open") - (kind == "close")
        line += word.count("\n")
        if kind == "end" and depth == 0:
            if statement:
                yield begun, statement.strip()
            statement = ""
        elif kind != "comment":
            statement += word


def _parts(dotted: str) -> tuple[str, ...]:
    """Read `a."b c".d` as TOML does."""
    value: Any = tomllib.loads(f"{dotted} = 0")
    parts = []
    while isinstance(value, dict):
        ((part, value),) = value.items()
        parts.append(part)
    return tuple(parts)
