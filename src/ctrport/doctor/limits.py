"""Limits that published ports run into: open files of the watcher, and the table of connections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.host import sysctl
from ctrport.host.reservation import OPEN_FILES, places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.doctor.survey import Survey

OTHER_FILES = 64  # that the watcher has open beside the ports it holds: sockets, events, the log
NEARLY = 0.9


def check(survey: Survey) -> Iterator[Finding]:
    """Say which limits are near."""
    if survey.settings.config.reserve_ports and survey.watcher.pid:
        limit = open_files(survey.watcher.pid)
        needed = len({place for b in survey.active for place in places(b)}) + OTHER_FILES
        if limit is not None and limit[0] < needed:
            most = limit[1] if limit[1] >= needed else OPEN_FILES  # beyond the hard limit it takes CAP_SYS_RESOURCE
            yield Finding(
                code=Code.OPEN_FILES_LIMIT,
                severity=Severity.WARNING,
                what=f"the watcher may open {limit[0]} files and needs about {needed} to hold every published port",
                detail="it cannot keep other programs off all of them",
                fix=(f"prlimit --pid {survey.watcher.pid} --nofile={most}:{most}", "ctrport sync"),
            )
    yield from connections(
        sysctl.read("net/netfilter/nf_conntrack_count"), sysctl.read("net/netfilter/nf_conntrack_max")
    )


def open_files(pid: int) -> tuple[int, int] | None:
    """Give how many files a process may have open, the soft limit and the hard; None when they cannot be seen."""
    try:
        found = re.search(
            r"^Max open files +(\d+) +(\d+)", Path(f"/proc/{pid}/limits").read_text("ascii"), re.MULTILINE
        )
    except OSError:
        return None
    return (int(found[1]), int(found[2])) if found else None


def connections(count: str | None, most: str | None) -> Iterator[Finding]:
    """Say when the kernel is about to refuse new connections, by its count of them and the most it takes."""
    if count and most and int(most) and int(count) >= NEARLY * int(most):
        yield Finding(
            code=Code.CONNTRACK_FULL,
            severity=Severity.SERIOUS,
            what=f"the kernel follows {count} connections of {most} at most: new ones are dropped",
            detail='the kernel\'s log then says "nf_conntrack: table full, dropping packet"',
            fix=(f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}",),
        )
