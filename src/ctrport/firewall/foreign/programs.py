"""Other people's rules are read and written by their own programs, one process a look or a change.

Never through libnftables in this process: a listing of somebody else's table may hold what an old library crashes
on (kubernetes#136786), and then a child dies and not the watcher. A child sees the network namespace of the
thread that starts it.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess

from ctrport.errors import HostError, KernelError

log = logging.getLogger(__name__)
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT = 30.0  # seconds: iptables waits for its lock for a part of it


def there(program: str) -> bool:
    """Say whether this host has a program."""
    return shutil.which(program, path=PATH) is not None


def run(*argv: str, script: str | None = None) -> str:
    """Run a program and give what it prints. HostError when it is missing or hangs, KernelError when it fails."""
    shown = shlex.join(argv)
    if script is None:
        log.debug("%s", shown)
    else:
        log.debug("%s <<'EOF'\n%sEOF", shown, script)
    if (program := shutil.which(argv[0], path=PATH)) is None:
        raise HostError(f"{argv[0]} is not installed")
    try:
        result = subprocess.run(
            [program, *argv[1:]],
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{shown} did not end within {TIMEOUT:.0f} s") from None
    if result.returncode != 0:
        said = next((line.strip() for line in result.stderr.splitlines() if line.strip()), "")
        how = f"exit code {result.returncode}" if result.returncode > 0 else f"signal {-result.returncode}"
        raise KernelError(f"{shown} failed with {how}: {said}", hint="run with -v to see what it was given")
    return result.stdout
