"""Log lines: what they look like where, and that nobody's name can move a cursor."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from ctrport import log
from strategies import hostile_text

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger("ctrport")
    before = (root.handlers[:], root.propagate, root.level)
    yield
    root.handlers[:], root.propagate, root.level = before


@given(text=hostile_text())
def test_no_control_character_is_printed(text: str):
    """Whatever is in a name: only line feeds and tabs, which are ours, are left as they are."""
    shown = log.printable(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    if not log.CONTROL.search(text):
        assert shown == text


def test_control_characters_are_written_out():
    """They can be read, and do nothing."""
    assert log.printable("a\x1b[2Jb\x07\x9b\r\n\tc") == "a\\x1b[2Jb\\x07\\x9b\\x0d\n\tc"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    logger = logging.getLogger("ctrport.test")
    logger.debug("script\nof two lines")
    logger.info("published %s", "web\x1b[31m")
    logger.warning("odd")
    logger.error("bad")
    return capsys.readouterr().err


def test_a_command_tells_what_went_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Warnings and errors, each with its word; a journal that happens to be there changes nothing."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    log.set_up(verbose=False)
    assert said(capsys) == "warning: odd\nerror: bad\n"


def test_a_verbose_command_tells_all(capsys: pytest.CaptureFixture[str]):
    """Scripts as they are, to be pasted; names without control characters."""
    log.set_up(verbose=True)
    assert said(capsys) == "script\nof two lines\npublished web\\x1b[31m\nwarning: odd\nerror: bad\n"


def test_a_daemon_tells_what_it_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """With time and level on a terminal."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    log.set_up(verbose=False, daemon=True)
    lines = said(capsys).splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO    published web\\x1b[31m",
        "WARNING odd",
        "ERROR   bad",
    ]


def test_the_journal_gets_a_priority_for_every_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """As sd-daemon(3) has it: <N> before each line, also of a message of several."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    log.set_up(verbose=True, daemon=True)
    assert said(capsys) == "<7>script\n<7>of two lines\n<6>published web\\x1b[31m\n<4>odd\n<3>bad\n"


def test_setting_up_twice_says_everything_once(capsys: pytest.CaptureFixture[str]):
    """Handlers are replaced and not added."""
    log.set_up(verbose=False)
    log.set_up(verbose=False)
    assert said(capsys) == "warning: odd\nerror: bad\n"
