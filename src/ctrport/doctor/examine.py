"""All checks of a host, in turn; one that cannot be made is a finding, and the next is made all the same."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ctrport.doctor import drift, firewalls, kernel, limits, mappings, settings, subnets, watcher
from ctrport.doctor.finding import Code, Finding, Severity, in_order
from ctrport.doctor.survey import Blind, survey
from ctrport.errors import CtrportError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ctrport.config import Settings
    from ctrport.doctor.survey import Survey


def _watcher(survey: Survey) -> Iterable[Finding]:
    return watcher.check(survey.watcher, survey.settings, containerd_answers=survey.containerd_error is None)


CHECKS: tuple[tuple[str, Callable[[Survey], Iterable[Finding]]], ...] = (
    ("kernel and nftables", kernel.check),
    ("the watcher", _watcher),
    ("kernel settings", settings.check),
    ("other people's firewalls", firewalls.check),
    ("mappings and listeners", mappings.check),
    ("networks", subnets.check),
    ("the table in the kernel", drift.check),
    ("limits", limits.check),
)


async def examine(wanted: Settings) -> tuple[Finding, ...]:
    """Give what is wrong with this host, the serious findings first."""
    found = await survey(wanted)
    findings = await asyncio.to_thread(judge, found)
    return in_order([*findings, *unseen(found)])


def judge(found: Survey) -> list[Finding]:
    """Make every check on what was seen."""
    findings: list[Finding] = []
    for what, check in CHECKS:
        try:
            findings += check(found)
        except (CtrportError, OSError) as error:
            told = error if isinstance(error, CtrportError) else HostError(str(error))
            found.blind.append(Blind(what, told))
    return findings


def unseen(found: Survey) -> Iterator[Finding]:
    """Say what could not be looked at, and so is not known to be right."""
    if (bad := found.settings.config_error) is not None:
        yield Finding(
            code=Code.BAD_CONFIGURATION,
            severity=Severity.SERIOUS,
            what="config.toml cannot be read: a watcher that runs keeps what it had, and no watcher would start",
            detail=bad.message,
            fix=("ctrport config check",),
        )
    if found.containerd_error is not None:
        yield Finding(
            code=Code.CONTAINERD_AWAY,
            severity=Severity.SERIOUS,
            what="containerd does not answer: what is published stays as it is and follows no container",
            detail=found.containerd_error.message,
            fix=("systemctl start containerd",),
        )
    if found.privileged:
        for what, error in found.blind:
            yield Finding(
                code=Code.COULD_NOT_LOOK,
                severity=Severity.SERIOUS,
                what=f"could not look at {what}: {error.message}",
                fix=(error.hint,) if error.hint else (),
            )
        return
    unread = [f"{what}: {error.message}" for what, error in found.blind]
    if found.nft_error is not None:
        unread.append(f"nftables: {found.nft_error.message}")
    unread.append("other people's firewalls, connections, and the names of other users' processes")
    yield Finding(
        code=Code.NOT_ROOT,
        severity=Severity.SERIOUS,
        what="not root with CAP_NET_ADMIN: most of it could not be seen, so nothing is known to be right",
        detail="\n".join(unread),
        fix=("sudo ctrport doctor",),
    )
