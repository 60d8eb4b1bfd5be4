"""Kernel settings that published ports need: which of them are wrong now, and which could not be set.

Only looks; what sets them is `host/sysctl`.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.host import sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.doctor.survey import Survey

STRICT, LOOSE = "1", "2"  # rp_filter


def check(survey: Survey) -> Iterator[Finding]:
    """Say which settings are wrong, and whether they could be put right from here."""
    wrong: list[str] = []
    for name, finding in _wrong(survey):
        wrong.append(name)
        yield finding
    place = sysctl.WRITABLE
    closed = [name for name in wrong if not os.access(place / name, os.W_OK)]
    if closed and survey.privileged:
        yield Finding(
            code=Code.SYSCTL_READ_ONLY,
            severity=Severity.SERIOUS,
            what=f"{place} is read-only here, so that ctrport cannot set {', '.join(map(_dotted, closed))}",
            detail="in a container: set them on the machine, or start the container with a /proc/sys to write to",
            fix=(f"mount -o remount,rw {place}",),
        )


def _wrong(survey: Survey) -> Iterator[tuple[str, Finding]]:
    active = survey.active
    if (active or survey.used) and sysctl.read(sysctl.IP_FORWARD) == "0":
        yield (
            sysctl.IP_FORWARD,
            _off(
                Code.IP_FORWARD_OFF, sysctl.IP_FORWARD, "this host does not forward IPv4: published ports time out"
            ),
        )
    if any(b.ipv6 for b in active) and sysctl.read(sysctl.IP6_FORWARDING) == "0":
        yield (
            sysctl.IP6_FORWARDING,
            _off(
                Code.IPV6_FORWARD_OFF,
                sysctl.IP6_FORWARDING,
                "this host does not forward IPv6: published ports time out",
            ),
        )
    everywhere = sysctl.read("net/ipv4/conf/all/route_localnet") == "1"
    towards = {survey.routes.interface_towards(b.ipv4) for b in active if b.ipv4}
    for interface in sorted(name for name in towards if name and not everywhere):
        name = f"net/ipv4/conf/{interface}/route_localnet"
        if sysctl.read(name) == "0":
            what = f"ports published towards {interface} do not answer on 127.0.0.1"
            yield name, _off(Code.ROUTE_LOCALNET_OFF, name, what)
    yield from _strict(survey)


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
                    fix=(_command(name, LOOSE),),
                ),
            )


def _off(code: Code, name: str, what: str) -> Finding:
    return Finding(
        code=code,
        severity=Severity.SERIOUS,
        what=what,
        detail=f"{_dotted(name)} is 0",
        fix=(_command(name, "1"),),
    )


def _command(name: str, value: str) -> str:
    return shlex.join(["sysctl", "-w", f"{_dotted(name)}={value}"])


def _dotted(name: str) -> str:
    """Write a setting as people do; an interface with a dot in its name needs the slashes (sysctl(8))."""
    return name if "." in name else name.replace("/", ".")
