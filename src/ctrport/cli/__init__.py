"""The command line: the only place that prints, and that knows exit codes."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

from ctrport.errors import CtrportError, HostError

# Objects until a collection. Loading the program makes many and leaves none to collect: Python's own 700 costs a
# tenth of a command's time.
THRESHOLD = 50_000
INTERRUPTED = 128 + signal.SIGINT


def program() -> NoReturn:
    """Run the program as a process of its own, which ends at once.

    To take all modules apart first costs 20 ms, and no command leaves anything to that.
    """
    gc.set_threshold(THRESHOLD)
    _open_closed_streams()
    code: object = 0
    try:
        try:
            main()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what has been done is told
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # who read it has gone, or `main` has closed it for that
        code = code or 1
    os._exit(code if isinstance(code, int) else int(code is not None))


def _open_closed_streams() -> None:
    """Let a standard stream that was closed lead to nothing, so that no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))  # the lowest number that is free


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 failed or not found, 2 bad usage; `run` has Docker's."""
    try:
        from ctrport.cli.app import app  # noqa: PLC0415 - errors of loading are told like others

        app(prog_name="ctrport")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except CtrportError as error:
        from ctrport.cli.output import print_error  # noqa: PLC0415

        print_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `ctrport ps | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a directory that cannot be made, a disk that is full
        from ctrport.cli.output import print_error  # noqa: PLC0415

        print_error(HostError(str(error), hint="look at --root and --state: ctrport --help"))
        sys.exit(1)
