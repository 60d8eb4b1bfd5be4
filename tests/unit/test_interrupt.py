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
