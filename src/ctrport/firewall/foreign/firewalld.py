"""firewalld, by its D-Bus interface and at run time only.

What DNAT has translated firewalld accepts by itself. What containers send, and with br_netfilter what they send
each other, it rejects: their bridge is in no zone, and so under the default zone's rules. So each bridge is put
into a zone that lets forwarded packets pass, `trusted` unless config.toml says otherwise; netavark and Docker do
alike. Rules of firewalld are never written: its table is made anew at each reload. A zone that an operator gave
the bridge stays, whatever it is. Direct rules are no way: their accept does not spare a packet firewalld's own
reject (firewalld.direct(5)). Nothing is made permanent, so a reload forgets it: `reloads` tells of them.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrport.errors import HostError
from ctrport.firewall.foreign.obstacle import Obstacle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator

log = logging.getLogger(__name__)
NAME = "org.fedoraproject.FirewallD1"
PATH = "/org/fedoraproject/FirewallD1"
ZONE = f"{NAME}.zone"
PERMANENT = f"{NAME}.config"
BUS, BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
TIMEOUT = 10.0  # seconds for a call: a reload under way holds it up
RETRY = 60.0  # seconds until a bus that is not there is looked for again


class Firewalld:
    """A connection to a firewalld that runs."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def zone_of(self, interface: str, *, permanent: bool = False) -> str:
        """Give the zone that an interface is in, "" when it is in none."""
        where = (f"{PATH}/config", PERMANENT) if permanent else (PATH, ZONE)
        return str(self._call(*where, "getZoneOfInterface", "s", interface)[0])

    def add(self, zone: str, interface: str) -> None:
        self._call(PATH, ZONE, "addInterface", "ss", zone, interface)

    def remove(self, zone: str, interface: str) -> None:
        self._call(PATH, ZONE, "removeInterface", "ss", zone, interface)

    def runs_here(self) -> bool:
        """Say whether one runs, and in this network namespace: a bus may reach into others."""
        if not self._call(BUS_PATH, BUS, "NameHasOwner", "s", NAME, name=BUS)[0]:
            return False
        (pid,) = self._call(BUS_PATH, BUS, "GetConnectionUnixProcessID", "s", NAME, name=BUS)
        try:
            return Path(f"/proc/{pid}/ns/net").samefile("/proc/thread-self/ns/net")
        except PermissionError:  # a service without CAP_SYS_PTRACE: it runs where its firewalld does
            return True
        except OSError:
            return False

    def _call(self, path: str, interface: str, method: str, signature: str, *body: str, name: str = NAME) -> Any:
        from jeepney import DBusAddress, new_method_call  # noqa: PLC0415
        from jeepney.wrappers import DBusErrorResponse, unwrap_msg  # noqa: PLC0415

        address = DBusAddress(path, bus_name=name, interface=interface)
        log.debug("D-Bus: %s.%s %s", interface, method, " ".join(body))
        try:
            reply = self._connection.send_and_get_reply(
                new_method_call(address, method, signature, body), timeout=TIMEOUT
            )
            return unwrap_msg(reply)
        except DBusErrorResponse as error:
            raise HostError(f"firewalld refused {method} {' '.join(body)}: {error}") from error
        except (OSError, EOFError) as error:  # TimeoutError among them
            raise HostError(f"firewalld did not answer {method} {' '.join(body)}: {error!r}") from error


@contextmanager
def connected() -> Iterator[Firewalld | None]:
    """Give the firewalld of this host; None where none runs, which is never started for that."""
    from jeepney.io.blocking import open_dbus_connection  # noqa: PLC0415 - only where there is a bus

    try:
        connection = open_dbus_connection("SYSTEM")
    except (OSError, EOFError, RuntimeError, ValueError):  # no bus, or none that can be spoken with
        yield None
        return
    with connection:
        firewalld = Firewalld(connection)
        yield firewalld if firewalld.runs_here() else None


def ensure(zone: str, bridges: Collection[str]) -> bool:
    """Put bridges that are in no zone into this one; says whether there were any."""
    found = False
    with connected() as firewalld:
        if firewalld is None or not zone:
            return False
        for bridge in sorted(bridges):
            if firewalld.zone_of(bridge) == "":
                firewalld.add(zone, bridge)
                found = True
                log.info("put %s into zone %s of firewalld, which would drop what containers send", bridge, zone)
    return found


def look(zone: str, bridges: Collection[str]) -> Obstacle | None:
    """Say which bridges are in no zone."""
    with connected() as firewalld:
        homeless = [b for b in sorted(bridges) if firewalld and not firewalld.zone_of(b)]
    if not homeless:
        return None
    return Obstacle(
        where="firewalld",
        what=f"{' and '.join(homeless)} is in no zone, and the default zone drops what containers send",
        fix=tuple(f"firewall-cmd --zone={zone or 'trusted'} --add-interface={b}" for b in homeless),
    )


def remove(zone: str, bridges: Collection[str]) -> bool:
    """Take bridges out of the zone, unless it is theirs permanently and so by somebody else; says if any was in."""
    found = False
    with connected() as firewalld:
        if firewalld is None or not zone:
            return False
        for bridge in sorted(bridges):
            if firewalld.zone_of(bridge) == zone and not firewalld.zone_of(bridge, permanent=True):
                firewalld.remove(zone, bridge)
                found = True
    return found


async def reloads() -> AsyncIterator[None]:
    """Give one item for each time that firewalld has loaded its rules anew, or has come or gone."""
    while True:
        with suppress(OSError, EOFError, RuntimeError, ValueError, TimeoutError):
            async for _ in _signals():
                yield
        await asyncio.sleep(RETRY)


async def _signals() -> AsyncIterator[None]:
    """Give one item for each such signal, until the bus goes away."""
    from jeepney import HeaderFields, MatchRule, MessageType, message_bus  # noqa: PLC0415
    from jeepney.io.asyncio import open_dbus_connection  # noqa: PLC0415

    reloaded = MatchRule(type="signal", interface=NAME, member="Reloaded", path=PATH)
    owner = MatchRule(type="signal", sender=BUS, interface=BUS, member="NameOwnerChanged", path=BUS_PATH)
    owner.add_arg_condition(0, NAME)
    connection = await asyncio.wait_for(open_dbus_connection("SYSTEM"), TIMEOUT)
    async with connection:
        for rule in (reloaded, owner):
            await connection.send(message_bus.AddMatch(rule))
        while True:
            message = await connection.receive()
            header = message.header
            member = header.fields.get(HeaderFields.member)
            if header.message_type is MessageType.signal and member in ("Reloaded", "NameOwnerChanged"):
                yield
