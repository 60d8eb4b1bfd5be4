"""Kernel settings that a published port needs, set when they are wrong and put back by `flush`.

What a setting was before we came is kept in the state directory, the first value only.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.errors import HostError
from ctrport.network import proc

if TYPE_CHECKING:
    from collections.abc import Collection

log = logging.getLogger(__name__)
PROC = Path("/proc/sys")
RECORD = "sysctl.json"
IP_FORWARD = "net/ipv4/ip_forward"
IP6_FORWARDING = "net/ipv6/conf/all/forwarding"


def read(name: str) -> str | None:
    """Give a setting's value, None when this kernel has none of that name."""
    try:
        return (PROC / name).read_text("ascii").strip()
    except OSError:
        return None


def ensure(state: Path, name: str, value: str, *, why: str) -> bool:
    """Set a setting unless it has the value already; says whether it was changed.

    HostError when it cannot be written: a read-only /proc with the right value is fine, with a wrong one it is not.
    """
    before = read(name)
    if before in (value, None):
        return False
    _remember(state, name, before or "")
    try:
        (PROC / name).write_text(value, "ascii")
    except OSError as error:
        dotted = name.replace("/", ".")
        raise HostError(
            f"{dotted} is {before}, and setting it to {value} failed: {error.strerror} ({why})",
            hint=f"sysctl -w {dotted}={value}",
        ) from error
    log.info("set %s from %s to %s: %s", name.replace("/", "."), before, value, why)
    return True


def ensure_for(state: Path, interfaces: Collection[str], *, ipv6: bool) -> None:
    """Set what mappings towards these interfaces need; what cannot be set is said, with what mends it."""
    try:
        if interfaces:
            ensure_forwarding(state, ipv6=ipv6)
        for interface in interfaces:
            ensure_route_localnet(state, interface)
    except HostError as error:
        log.error("%s; mend it with: %s", error.message, error.hint)  # noqa: TRY400 - told in full


def ensure_forwarding(state: Path, *, ipv6: bool) -> None:
    """Let this host route: without it a published port times out in silence.

    An uplink that takes its routes from router advertisements (accept_ra=1) would stop doing so as a router; 2
    makes it go on (Documentation/networking/ip-sysctl.rst). Interfaces that have learned nothing so far are left
    alone: towards containers, listening to advertisements is a hole (CVE-2020-13401).
    """
    ensure(state, IP_FORWARD, "1", why="published ports are forwarded")
    if not ipv6 or read(IP6_FORWARDING) == "1":
        return
    for interface in sorted(proc.advertised_interfaces()):
        name = f"net/ipv6/conf/{interface}/accept_ra"
        if read(name) == "1":
            ensure(state, name, "2", why="keep taking router advertisements while forwarding")
    ensure(state, IP6_FORWARDING, "1", why="published ports are forwarded over IPv6")


def ensure_route_localnet(state: Path, interface: str) -> None:
    """Let packets from 127.0.0.1 leave towards containers; the `loopback` chain guards the way in."""
    ensure(state, f"net/ipv4/conf/{interface}/route_localnet", "1", why="ports are published on 127.0.0.1")


def restore(state: Path) -> list[str]:
    """Put back what we changed; gives lines that say so. Settings of interfaces that are gone went with them."""
    path = state / RECORD
    done = []
    for name, value in _recorded(state).items():
        now = read(name)
        if now is not None and now != value:
            try:
                (PROC / name).write_text(value, "ascii")
            except OSError as error:
                done.append(f"could not put back {name.replace('/', '.')} to {value}: {error.strerror}")
                continue
            done.append(f"put back {name.replace('/', '.')} from {now} to {value}")
    path.unlink(missing_ok=True)
    return done


def _recorded(state: Path) -> dict[str, str]:
    try:
        return dict(json.loads((state / RECORD).read_text("utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _remember(state: Path, name: str, value: str) -> None:
    record = _recorded(state)
    if name not in record:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = state / f".{RECORD}"
        draft.write_text(json.dumps({**record, name: value}, indent=1) + "\n", "utf-8")
        draft.rename(state / RECORD)
