"""One setting of the kernel: read, set when it is wrong, put back by `flush`. What is needed is said in `needs`.

What a setting was before we came is kept in the state directory, the first value only.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.errors import HostError
from ctrport.host import pseudo

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)
PROC = Path("/proc/sys")
# Settings are written here. In a container /proc/sys is read-only, and the host's may be mounted at another place.
WRITABLE = Path(os.environ.get("CTRPORT_PROC_SYS", PROC))
RECORD = "sysctl.json"
IP_FORWARD = "net/ipv4/ip_forward"
IP6_FORWARDING = "net/ipv6/conf/all/forwarding"


def read(name: str) -> str | None:
    """Give a setting's value, None when this kernel has none of that name."""
    try:
        return pseudo.read(f"{PROC}/{name}").decode("ascii").strip()
    except OSError:
        return None


def spelled(name: str) -> str:
    """Give a name as sysctl(8) takes it: with dots, unless one is part of it (an interface eth0.100)."""
    return name if "." in name else name.replace("/", ".")


def command(name: str, value: str) -> str:
    """Give the command that sets a setting, to be pasted."""
    return f"sysctl -w {shlex.quote(f'{spelled(name)}={value}')}"


def ensure(state: Path, name: str, value: str, *, why: str) -> bool:
    """Set a setting unless it has the value already; says whether it was changed.

    HostError when it cannot be written: a read-only /proc with the right value is fine, with a wrong one it is not.
    """
    before = read(name)
    if before is None or before == value:
        return False
    forgotten = _remember(state, name, before)
    try:
        (WRITABLE / name).write_text(value, "ascii")
    except OSError as error:
        raise HostError(
            f"{spelled(name)} is {before}, and setting it to {value} failed: {error.strerror} ({why})",
            hint=command(name, value),
        ) from error
    log.info("set %s from %s to %s: %s", spelled(name), before, value, why)
    if forgotten is not None:
        log.warning("flush cannot put %s back: its value could not be kept: %s", spelled(name), forgotten)
    return True


def changed(state: Path) -> dict[str, str]:
    """Give the settings that were changed and not put back yet, with their values from before."""
    try:
        return dict(json.loads((state / RECORD).read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def restore(state: Path) -> list[str]:
    """Put back what we changed, last things first; gives lines that say so.

    Settings of interfaces that are gone went with them.
    """
    done = []
    for name, value in reversed(changed(state).items()):
        now = read(name)
        if now is not None and now != value:
            try:
                (WRITABLE / name).write_text(value, "ascii")
            except OSError as error:
                done.append(f"could not put back {spelled(name)} to {value}: {error.strerror}")
                continue
            done.append(f"put back {spelled(name)} from {now} to {value}")
    (state / RECORD).unlink(missing_ok=True)
    return done


def _remember(state: Path, name: str, value: str) -> str | None:
    """Keep a setting as it was; says why it could not be kept, which stops no port (a full disk)."""
    record = changed(state)
    if name not in record:
        record |= {other: old for other, old in _carried_along(name, value) if other not in record}
        draft = state / f".{RECORD}"
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_text(json.dumps({**record, name: value}, indent=1) + "\n", "utf-8")
            draft.rename(state / RECORD)
        except OSError as error:
            return error.strerror or str(error)
    return None


def _carried_along(name: str, value: str) -> Iterator[tuple[str, str]]:
    """Give what the kernel changes along with a setting, and would not put back along with it.

    Forwarding is written through to every interface, and that of IPv4 turns all/accept_redirects to its opposite
    (inet_forward_change, addrconf_forward_change). An operator may have set some of these by themselves.
    """
    if name not in (IP_FORWARD, IP6_FORWARDING):
        return
    family = "/".join(name.split("/")[:2])
    implied = {f"{family}/conf/{path.name}/forwarding": value for path in (PROC / family / "conf").iterdir()}
    if name == IP_FORWARD:
        implied[f"{family}/conf/all/accept_redirects"] = "0" if value == "1" else "1"
    for other, would_be in sorted(implied.items()):
        now = read(other)
        if now not in (None, would_be):
            yield other, str(now)
