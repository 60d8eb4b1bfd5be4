"""Ctrl-C at moments that a clock does not hit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
# The loop's socket pair is made in the middle of its making.
PROGRAM = """
import os, signal, socket, sys

made = socket.socketpair

def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return made(*arguments)

socket.socketpair = interrupted
from ctrport.cli import program
program()
"""

# Standard output is written out after everything has been done.
WRITING = """
import os, signal, sys

written = sys.stdout.flush

class Interrupted:
    def __getattr__(self, name):
        return getattr(sys.__stdout__, name)

    def flush(self):
        if sys._getframe(1).f_code.co_name == "program":
            os.kill(os.getpid(), signal.SIGINT)
        written()

sys.stdout = Interrupted()
from ctrport.cli import program
program()
"""


def test_ctrl_c_while_the_output_is_written():
    """What has been done is told, and Ctrl-C comes too late to change it."""
    ended = subprocess.run(
        [sys.executable, "-c", WRITING, "--version"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert (ended.returncode, ended.stdout.startswith("ctrport "), ended.stderr) == (0, True, "")


def test_ctrl_c_while_asyncio_makes_its_loop(tmp_path: Path):
    """The run ends as by any Ctrl-C, with nothing on standard error."""
    directories = ("--root", str(tmp_path / "root"), "--state", str(tmp_path / "state"))
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *directories, "run", "-d", "web"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "CTRPORT_CONFIG": ""},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
