"""Kernel settings that published ports need: which of them are wrong now, and which could not be set.

Only looks; what is needed, and setting it, is `host/needs`. Uplinks, the operator's, are looked at here alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.host import needs, sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.doctor.survey import Survey

STRICT, LOOSE = "1", "2"  # rp_filter
# By the last part of a setting's name; without the first no port works, without the others some ways do not.
CODES = {
    "ip_forward": Code.IP_FORWARD_OFF,
    "forwarding": Code.IPV6_FORWARD_OFF,
    "route_localnet": Code.ROUTE_LOCALNET_OFF,
    "rp_filter": Code.RP_FILTER_STRICT,
    "accept_ra": Code.ROUTER_ADVERTISEMENTS,
}
WARNINGS = (Code.RP_FILTER_STRICT, Code.ROUTER_ADVERTISEMENTS)


def check(survey: Survey) -> Iterator[Finding]:
    """Say which settings are wrong, and whether they could be put right from here."""
    wrong: list[str] = []
    for name, finding in (*_needed(survey), *_strict(survey)):
        wrong.append(name)
        yield finding
    place = sysctl.WRITABLE
    closed = [name for name in wrong if not os.access(place / name, os.W_OK)]
    if closed and survey.privileged:
        yield Finding(
            code=Code.SYSCTL_READ_ONLY,
            severity=Severity.SERIOUS,
            what=f"{place} is read-only here: ctrport cannot set {', '.join(map(sysctl.spelled, closed))}",
            detail="in a container: set them on the machine, or start the container with a /proc/sys to write to",
            fix=(f"mount -o remount,rw {place}",),
        )


def _needed(survey: Survey) -> Iterator[tuple[str, Finding]]:
    """Compare with what a pass would set; where nothing is published, nothing is needed yet."""
    if not survey.active and not survey.used:
        return
    ipv6 = any(binding.ipv6 for binding in survey.active)
    changed = sysctl.changed(survey.settings.state)
    for found in needs.findings(survey.links, ipv6=ipv6, changed=changed):
        name = found.setting.name
        code = CODES[name.rpartition("/")[2]]
        yield (
            name,
            Finding(
                code=code,
                severity=Severity.WARNING if code in WARNINGS else Severity.SERIOUS,
                what=f"a setting of this host's kernel stands in the way: {found}",
                fix=(found.fix,),
            ),
        )


def _strict(survey: Survey) -> Iterator[tuple[str, Finding]]:
    """With one way out a client's packets come in where answers go out; with two they need not."""
    uplinks = {r.interface for r in survey.routes.routes if r.network.version == 4 and not r.network.prefixlen}  # noqa: PLR2004 - an IP version
    for interface in sorted(uplinks if len(uplinks) > 1 and survey.active else ()):
        name = f"net/ipv4/conf/{interface}/rp_filter"
        values = [sysctl.read("net/ipv4/conf/all/rp_filter") or "0", sysctl.read(name) or "0"]
        if max(values) == STRICT:  # the kernel takes the higher of the two (ip-sysctl.rst)
            yield (
                name,
                Finding(
                    code=Code.RP_FILTER_STRICT,
                    severity=Severity.WARNING,
                    what=f"{interface} drops clients whose way back leads through another interface",
                    detail=f"there are default routes by {', '.join(sorted(uplinks))}, and rp_filter is strict (1)",
                    fix=(sysctl.command(name, LOOSE),),
                ),
            )
