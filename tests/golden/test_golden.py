"""The whole table of each scenario, to the letter: a change of the rules is seen in review."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from golden.scenarios import DIRECTORY, SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_table_is_the_one_agreed_on(name: str, agreed: Callable[[Path, str], None]):
    """A scenario makes the table in its file."""
    agreed(DIRECTORY / f"{name}.nft", SCENARIOS[name].declaration())


def test_every_file_has_a_scenario():
    """No file is left over from a scenario that is gone."""
    assert {path.stem for path in DIRECTORY.glob("*.nft")} == set(SCENARIOS)
