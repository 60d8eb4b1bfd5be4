"""The command line: the only place that prints, and that knows exit codes."""

from __future__ import annotations

import sys

from ctrport.errors import CtrportError, HostError


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 failed or not found, 2 bad usage; `run` has Docker's."""
    try:
        from ctrport.cli.app import app  # noqa: PLC0415 - errors of loading are told like others

        app(prog_name="ctrport")
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT
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
