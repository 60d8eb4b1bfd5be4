"""How long a watcher rests between full passes."""

from __future__ import annotations

import pytest

from ctrport.rhythm import Rhythm, rest


@pytest.mark.parametrize(
    ("every", "cost", "seconds"),
    [
        (60, 0.02, 60),  # as asked for
        (0.3, 0.09, 0.3),
        (60, 0.25, 250),  # a thousandth of a processor
        (300, 0.25, 300),
        (60, 5, 600),  # never longer than ten times
    ],
)
def test_rest(every: float, cost: float, seconds: float):
    """A pass that is cheap comes as often as asked for, one that is dear less often, within bounds."""
    assert rest(every, cost) == seconds


def test_a_pass_that_has_not_ended_does_not_count():
    """The rest begins at the end of a pass; until the first one has ended, at one's own beginning."""
    rhythm = Rhythm()
    begun = rhythm.since()
    rhythm.begin()
    assert rhythm.since() >= begun >= 0
    before = rhythm.since()
    rhythm.end()
    assert rhythm.since() <= before
    assert rhythm.rest(60) == 60
