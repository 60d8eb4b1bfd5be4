"""The lines that a pass logs: a range of ports is one, whatever is not the same begins another."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ctrport.journal import log_changes
from ctrport.model.bindings import Binding, Change, State
from ctrport.model.ports import parse
from ctrport.model.workload import Key

if TYPE_CHECKING:
    import pytest

WEB, DB = Key("default", "web"), Key("default", "db")


def bindings(owner: Key, spec: str, *, state: State = State.ACTIVE, reason: str = "") -> list[Binding]:
    """Give what became of a spec."""
    return [
        Binding(
            owner=owner,
            mapping=mapping,
            host_port=mapping.host_port,
            state=state,
            reason=reason,
            ipv4=IPv4Address("198.51.100.2"),
            ipv6=IPv6Address("2001:db8::2"),
        )
        for mapping in parse(spec)
    ]


def logged(caplog: pytest.LogCaptureFixture, changes: list[Change]) -> list[str]:
    """Give what is said of some changes."""
    caplog.clear()
    with caplog.at_level("INFO"):
        log_changes(changes)
    return caplog.messages


def test_ranges(caplog: pytest.LogCaptureFixture):
    """A thousand ports are one line; another owner, protocol, address or distance begins a new one."""
    came = [
        *bindings(WEB, "8000-8999:80-1079"),
        *bindings(WEB, "9000:80"),
        *bindings(WEB, "9001:81/udp"),
        *bindings(WEB, "127.0.0.1:9002:82/udp"),
        *bindings(DB, "127.0.0.1:9003:83/udp"),
        *bindings(DB, "127.0.0.1:9004:85/udp"),
    ]
    to = "-> 198.51.100.2 and 2001:db8::2 port"
    assert logged(caplog, [Change(None, binding) for binding in came]) == [
        f"published default/web 8000-8999/tcp {to} 80-1079",
        f"published default/web 9000/tcp {to} 80",
        f"published default/web 9001/udp {to} 81",
        f"published default/web 127.0.0.1:9002/udp {to} 82",
        f"published default/db 127.0.0.1:9003/udp {to} 83",
        f"published default/db 127.0.0.1:9004/udp {to} 85",
    ]


def test_what_goes_and_what_waits(caplog: pytest.LogCaptureFixture):
    """What went is said before what came; whatever is not served has a line with its reason each."""
    old, new = bindings(WEB, "8000-8001:80-81"), bindings(DB, "8000-8001:80-81")
    waiting = bindings(WEB, "8000-8001:80-81", state=State.WAITING, reason="held by default/db")
    to = "-> 198.51.100.2 and 2001:db8::2 port"
    changes = [*map(Change, old, waiting), *(Change(None, binding) for binding in new)]
    assert logged(caplog, changes) == [
        f"unpublished default/web 8000-8001/tcp {to} 80-81",
        f"published default/db 8000-8001/tcp {to} 80-81",
        "waiting default/web: 8000:80/tcp: held by default/db",
        "waiting default/web: 8001:81/tcp: held by default/db",
    ]
