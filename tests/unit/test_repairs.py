"""The memory of repairs: how fights are told from accidents."""

from __future__ import annotations

import pytest

from ctrport.repairs import MANY, OFTEN, PAUSES, PEACE, Repairs


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repairs(clock: Clock) -> Repairs:
    return Repairs(clock)


def note(repairs: Repairs, thing: str = "table") -> None:
    repairs.note(thing, "it was gone", "nft (pid 811)", 0.0071)


def test_a_few_repairs_are_no_fight(repairs: Repairs, clock: Clock):
    """What happens now and then is put right at once, however long that goes on."""
    for _ in range(100):
        note(repairs)
        assert repairs.pause("table") == 0.0
        clock.now += 3
    assert repairs.to_json()["fighting"] == {}


def test_a_fight(repairs: Repairs, clock: Clock, caplog: pytest.LogCaptureFixture):
    """After some repairs at short intervals pauses begin, double, have a limit, and are told of once."""
    for _ in range(OFTEN):
        note(repairs)
        clock.now += 0.1
    assert repairs.pause("table") == 0.0
    found = []
    for _ in range(9):
        note(repairs)
        found.append(round(repairs.pause("table"), 3))
        clock.now += found[-1] + 0.001
        assert repairs.pause("table") == 0.0
    assert found == [0.5, 1, 2, 4, 8, 16, 30, 30, PAUSES[1]]
    (warning,) = [r.message for r in caplog.records if "again and again" in r.message]
    assert warning.startswith("nft (pid 811) undoes again and again what published ports need (it was gone): ")
    assert repairs.to_json()["fighting"] == {"table": "nft (pid 811)"}
    assert repairs.pause("settings") == 0.0, "other things are no part of it"
    clock.now += PEACE + 1
    assert repairs.to_json()["fighting"] == {}
    note(repairs)
    assert repairs.pause("table") == 0.0


def test_different_damages_are_no_fight_until_they_are_very_many(
    repairs: Repairs, clock: Clock, caplog: pytest.LogCaptureFixture
):
    """Each damage is counted by itself, so that an accident is not paused for another; but nobody spins."""
    for number in range(MANY):
        repairs.note("table", f"published4 lacked tcp . {number}", "nft (pid 811)", 0.0071)
        clock.now += 0.01
        assert repairs.pause("table", "it was gone") == 0.0
    assert "again and again" not in caplog.text
    repairs.note("table", "it was gone", "nft (pid 811)", 0.0071)
    assert repairs.pause("table", "published4 lacked tcp . 1") == PAUSES[0]
    assert caplog.text.count("again and again") == 1


def test_a_fight_over_one_damage_pauses_no_other(repairs: Repairs):
    """Whoever does not know the damage beforehand waits for any fight."""
    for _ in range(OFTEN + 1):
        note(repairs)
    assert repairs.pause("table", "it was gone") == repairs.pause("table") == PAUSES[0]
    assert repairs.pause("table", "published4 lacked tcp . 1") == 0.0


def test_what_is_done_in_many_steps_counts_as_one(repairs: Repairs, clock: Clock):
    """Repairs within a spell are one; whoever goes on from spell to spell fights all the same."""
    for _ in range(2):  # two reloads in ten steps each
        for _ in range(10):
            repairs.note("firewalls", "our part was missing", "iptables (pid 811)", 0.05, spell=1.0)
            clock.now += 0.2
        clock.now += 1
    assert repairs.pause("firewalls") == 0.0
    found = []
    for _ in range(60):
        repairs.note("firewalls", "our part was missing", "iptables (pid 811)", 0.05, spell=1.0)
        found.append(repairs.pause("firewalls"))
        clock.now += found[-1] or 0.1
    assert 0.0 in found
    assert found[-1] == PAUSES[1]


def test_what_others_are_told(repairs: Repairs):
    """The number of repairs and the last one, as plain data."""
    assert repairs.to_json() == {"repairs": 0, "last_repair": None, "fighting": {}}
    note(repairs)
    told = repairs.to_json()
    assert told["last_repair"].pop("at") > 0
    assert told == {
        "repairs": 1,
        "last_repair": {"what": "it was gone", "process": "nft (pid 811)", "seconds": 0.007},
        "fighting": {},
    }
