"""Log lines: for the journal with a priority each, for a terminal with a time or a word."""

from __future__ import annotations

import logging
import os
import re
import sys

# Names in messages come from annotations, images and processes: no control character of theirs may reach a
# terminal. Line feeds and tabs are ours (scripts shown by -v).
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))  # syslog(3)


class _Formatter(logging.Formatter):
    def __init__(self, *, journal: bool, daemon: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s" if daemon and not journal else "%(message)s")
        self._journal, self._daemon = journal, daemon

    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record))
        if self._journal:
            priority = next((p for level, p in PRIORITIES if record.levelno >= level), 7)
            return "\n".join(f"<{priority}>{line}" for line in text.splitlines())
        if not self._daemon and record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {text}"
        return text


def printable(text: str) -> str:
    """Give a text with its control characters written out."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def set_up(*, verbose: bool, daemon: bool = False) -> None:
    """Send log lines to standard error: a daemon tells what it does, a command only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    # systemd sets JOURNAL_STREAM where standard error is the journal, which then reads <N> as the priority.
    handler.setFormatter(_Formatter(journal="JOURNAL_STREAM" in os.environ and daemon, daemon=daemon))
    root = logging.getLogger("ctrport")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.DEBUG if verbose else logging.INFO if daemon else logging.WARNING)
