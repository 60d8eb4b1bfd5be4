"""Golden files: what is made today beside what was agreed on, and the option that agrees on today's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files and the listings in docs/ anew"
    )


@pytest.fixture
def agreed(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Give a function that compares a file with a text, or writes the text with --update-golden."""
    update = request.config.getoption("--update-golden", default=False)  # not known unless tests/golden is named

    def compare(path: Path, text: str) -> None:
        if update:
            path.write_text(text, "utf-8")
        assert path.read_text("utf-8") == text, (
            f"{path.name} differs: look, then pytest --update-golden tests/golden"
        )

    return compare
