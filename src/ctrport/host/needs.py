"""The settings that published ports need, as data; what is found otherwise; and setting it right.

One table (`wanted`) serves the passes, the file under /run/sysctl.d and whoever only looks (`findings`). Uplinks
belong to the operator: nothing here changes one, but for accept_ra where our forwarding would cost it its routes.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctrport.errors import HostError
from ctrport.host import sysctl, sysctl_file
from ctrport.network import proc

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from ctrport.config import Settings
    from ctrport.firewall.ruleset import Links

log = logging.getLogger(__name__)
STRICT, LOOSE = 1, 2  # of rp_filter, Documentation/networking/ip-sysctl.rst


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting as it should be."""

    name: str  # its path below /proc/sys
    value: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A setting that is not as it should be."""

    setting: Setting
    found: str

    @property
    def fix(self) -> str:
        """The command that mends it."""
        return sysctl.command(self.setting.name, self.setting.value)

    def __str__(self) -> str:
        name = sysctl.spelled(self.setting.name)
        return f"{name} is {self.found} and should be {self.setting.value}: {self.setting.why}"


def wanted(links: Links, *, ipv6: bool, changed: Collection[str] = ()) -> list[Setting]:
    """Give every setting that mappings towards these interfaces need, in the order in which to set them.

    Which of them are needed depends on others that the operator has chosen, so this reads /proc/sys. `changed`
    are the settings that we have changed before; what we made so stays wanted.
    """
    if not links.every:
        return []
    found = [Setting(name=sysctl.IP_FORWARD, value="1", why="published ports are forwarded")]
    if ipv6 or sysctl.IP6_FORWARDING in changed:
        found += _ipv6(links, changed)
    for bridge in sorted(links.bridges):
        # Listening to advertisements from containers is a hole (CVE-2020-13401).
        name, why = f"net/ipv6/conf/{bridge}/accept_ra", "containers must not give this host routes"
        found.append(Setting(name=name, value="0", why=why))
    for interface in sorted(links.every):
        # The `loopback` chain of our table guards the way in.
        name, why = f"net/ipv4/conf/{interface}/route_localnet", "ports are published on 127.0.0.1"
        found.append(Setting(name=name, value="1", why=why))
    return found + list(_reverse_path(links))


def findings(links: Links, *, ipv6: bool, changed: Collection[str] = ()) -> list[Finding]:
    """Give what is not as it should be, and change nothing. What this kernel does not have is passed over."""
    settings = [(sysctl.read(each.name), each) for each in wanted(links, ipv6=ipv6, changed=changed)]
    return [Finding(setting=each, found=now) for now, each in settings if now not in (None, each.value)]


def ensure(state: Path, links: Links, *, ipv6: bool) -> list[HostError]:
    """Set what is needed towards these interfaces; gives what could not be set, which stops none of the rest."""
    return _set_all(state, wanted(links, ipv6=ipv6, changed=sysctl.changed(state)))


class HostSettings:
    """What a writer remembers of them between its passes."""

    def __init__(self, settings: Settings) -> None:
        self.trouble: tuple[str, ...] = ()  # what could not be set by the last pass, with what mends it
        self._state = settings.state
        self._config = settings.config
        self._for: tuple[Links, bool] | None = None  # for what the last pass set them
        self._set: list[Setting] = []  # as of then
        self._at_work = threading.RLock()  # passes set them in threads, repairs beside them
        self._seen: dict[str, str | None] = {}  # what decided, as of then

    def ensure(self, links: Links, *, ipv6: bool) -> None:
        """Set what is needed and keep it from `sysctl --system`; what cannot be done is told once."""
        with self._at_work:
            settings = wanted(links, ipv6=ipv6, changed=sysctl.changed(self._state))
            failures = _set_all(self._state, settings)
            self._set, self._for = settings, (links, ipv6)
            self._seen = {name: sysctl.read(name) for name in _filters(links)}
            # Asked now: what counts is the namespace of the thread that has just set them.
            if (directory := sysctl_file.place(self._config)) is not None:
                lines = [(setting.name, setting.value, setting.why) for setting in settings]
                try:
                    sysctl_file.write(directory, lines)
                except HostError as error:
                    failures.append(error)
            told, self.trouble = self.trouble, tuple(f"{e.message}; mend it with: {e.hint}" for e in failures)
            for text in self.trouble:
                if text not in told:
                    log.error("%s", text)

    def ensure_once(self, links: Links, *, ipv6: bool) -> None:
        """Do the same, unless nothing else is needed than what was set; what others change is `mend`'s matter."""
        if self.trouble or self._for != (links, ipv6):
            self.ensure(links, ipv6=ipv6)

    def mend(self) -> list[str]:
        """Set again what somebody has changed since the last pass, or made necessary; names it.

        Costs a file's reading each. What could not be set by the pass is left to the next one.
        """
        with self._at_work:
            if self._for is None or self.trouble:
                return []
            found = [each.name for each in self._set if sysctl.read(each.name) not in (None, each.value)]
            if found or any(sysctl.read(name) != value for name, value in self._seen.items()):
                before = {each.name for each in self._set}
                links, ipv6 = self._for
                self.ensure(links, ipv6=ipv6)
                found += [each.name for each in self._set if each.name not in before]
        return [sysctl.spelled(name) for name in found]


def _set_all(state: Path, settings: list[Setting]) -> list[HostError]:
    failures = []
    for setting in settings:
        try:
            sysctl.ensure(state, setting.name, setting.value, why=setting.why)
        except HostError as error:
            failures.append(error)
    return failures


def _ipv6(links: Links, changed: Collection[str]) -> Iterator[Setting]:
    """Let this host route IPv6, and go on taking its own routes.

    An uplink that takes its routes from router advertisements (accept_ra=1) would stop doing so as a router, and
    the kernel forgets those that it has (rt6_purge_dflt_routers); with 2 it goes on. So 2 comes first. A host
    that forwards already has decided for itself, unless that was us.
    """
    forwards = sysctl.read(sysctl.IP6_FORWARDING) == "1"
    ours = {name.split("/")[3] for name in changed if name.endswith("/accept_ra")}
    for interface in sorted((proc.advertised_interfaces() | ours) - links.bridges):
        name = f"net/ipv6/conf/{interface}/accept_ra"
        now = sysctl.read(name)
        if (interface in ours and now in ("1", "2")) or (now == "1" and not forwards):
            yield Setting(name=name, value="2", why="keep taking router advertisements while forwarding")
    yield Setting(name=sysctl.IP6_FORWARDING, value="1", why="published ports are forwarded over IPv6")


def _filters(links: Links) -> list[str]:
    """Give the settings by which `_reverse_path` decides."""
    return [f"net/ipv4/conf/{interface}/rp_filter" for interface in ("all", *sorted(links.every))]


def _reverse_path(links: Links) -> Iterator[Setting]:
    """Let containers on two networks answer by the other one.

    Their answer to what was sent to a container address of the one network comes in by the other network's
    interface. With strict reverse path filtering the kernel drops it, before our translation makes an address of
    this host of its source. In force is the larger value of the interface's own and conf/all's.
    """
    everywhere = int(sysctl.read("net/ipv4/conf/all/rp_filter") or 0)
    uplinks: frozenset[str] | None = None
    for interface in sorted(links.every):
        name = f"net/ipv4/conf/{interface}/rp_filter"
        own = int(sysctl.read(name) or 0)
        if own != LOOSE and max(own, everywhere) != STRICT:
            continue
        if interface not in links.bridges:
            if uplinks is None:
                uplinks = frozenset(r.interface for r in proc.read().routes if r.gateway)
            if interface in uplinks:
                continue
        yield Setting(name=name, value=str(LOOSE), why="containers on two networks answer by either")
