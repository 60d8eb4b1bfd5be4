"""Curves as SVG: both axes logarithmic, a line for each program. No library: it is forty lines of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

COLOURS = ("#0b6e4f", "#c0392b", "#2a6fdb", "#8e44ad", "#7f8c8d", "#d68910")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 70, 170, 40, 50
FONT = 'font-family="sans-serif" font-size="12"'


def curves(title: str, x_name: str, y_name: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Give the text of a picture; `lines` are points by name."""
    every = [point for points in lines.values() for point in points]
    (x0, x1), (y0, y1) = _decades(x for x, _ in every), _decades(y for _, y in every)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x0) / (x1 - x0)
        up = (math.log10(y) - y0) / (y1 - y0)
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(x_name)}</text>',
        f'<text x="8" y="{TOP - 6}">{escape(y_name)}</text>',
    ]
    for exponent in range(x0, x1 + 1):
        x, _ = place(10.0**exponent, 10.0**y0)
        parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{10**exponent:,}</text>')
    for exponent in range(y0, y1 + 1):
        _, y = place(10.0**x0, 10.0**exponent)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{10.0**exponent:g}</text>')
    for row, ((name, points), colour) in enumerate(zip(lines.items(), COLOURS * 3, strict=False)):
        spots = [place(x, y) for x, y in sorted(points)]
        line = " ".join(f"{x},{y}" for x, y in spots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in spots]
        parts.append(
            f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 18 * row + 12}" fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _decades(values: Iterable[float]) -> tuple[int, int]:
    found = [math.log10(v) for v in values]
    low, high = math.floor(min(found)), math.ceil(max(found))
    return low, max(high, low + 1)
