"""One port as asked about, and the way of a packet to it in stages. Data only."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from ctrport.errors import InputError
from ctrport.model.bindings import is_wildcard, socket_text
from ctrport.model.ports import Protocol, parse_port_argument

if TYPE_CHECKING:
    from ctrport.doctor.finding import Finding
    from ctrport.model.bindings import Binding


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was asked about; without a host IP any address of this host."""

    port: int
    protocol: Protocol = Protocol.TCP
    host_ip: IPv4Address | IPv6Address | None = None

    def __str__(self) -> str:
        return socket_text(self.host_ip, self.port, self.protocol)

    def takes(self, binding: Binding) -> bool:
        """Say whether a mapping is one of this port."""
        mapping = binding.mapping
        low, high = mapping.host_port_pool or (0, 0)
        port = binding.host_port == self.port or (binding.host_port is None and low <= self.port <= high)
        wild = is_wildcard(self.host_ip) or is_wildcard(mapping.host_ip)
        family = not self.host_ip or not mapping.host_ip or self.host_ip.version == mapping.host_ip.version
        return port and mapping.protocol is self.protocol and family and (wild or self.host_ip == mapping.host_ip)


def parse(text: str) -> Target:
    """Read `8080`, `8080/udp`, `192.0.2.1:8080`, `[2001:db8::1]:8080/tcp`; InputError for anything else."""
    address, _, port = text.rpartition(":")
    number, protocol = parse_port_argument(port)
    try:
        host_ip = ip_address(address.removeprefix("[").removesuffix("]")) if address else None
    except ValueError:
        raise InputError(
            f"{address!r} is not an address of a host", hint="ctrport doctor 192.0.2.1:8080/tcp, or 8080"
        ) from None
    return Target(port=number, protocol=protocol, host_ip=host_ip)


class Passed(enum.StrEnum):
    """What became of a packet at one stage."""

    YES = "ok"
    NO = "failed"
    UNKNOWN = "unknown"


class Outcome(enum.StrEnum):
    """What became of a try."""

    ANSWERED = "answered"
    REFUSED = "refused"
    DROPPED = "dropped"
    UNREACHABLE = "unreachable"
    SENT = "sent"  # a datagram: nobody refused it


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A place on the way."""

    name: str
    passed: Passed
    what: str
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "state": str(self.passed),
            "what": self.what,
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """The whole way, and its end."""

    target: Target
    stages: tuple[Stage, ...]
    outcome: Outcome | None  # as tried from this host; None: not tried
    by: str = ""  # who answers, refuses or drops
    others: str = ""  # what stops packets of other machines on their way through

    @property
    def failure(self) -> Stage | None:
        """The stage that fails first."""
        return next((stage for stage in self.stages if stage.passed is Passed.NO), None)

    @property
    def answered(self) -> bool:
        """Whether all is as it should be, as far as can be seen: SCTP is not tried."""
        tried = self.outcome in (Outcome.ANSWERED, Outcome.SENT) or self.target.protocol is Protocol.SCTP
        return tried and self.failure is None

    def verdict_text(self) -> str:
        """Give the last line: what becomes of a packet to the port, and by whom."""
        end = f"{self.target}: {self.outcome or 'not tried'}" + (f" by {self.by}" if self.by else "")
        if self.others:
            end += f"; for other machines dropped: {self.others}"
        return f"{end}; fails first at: {self.failure.name}" if self.failure else end

    def to_json(self) -> dict[str, Any]:
        """Give it as plain JSON."""
        return {
            "port": self.target.port,
            "protocol": str(self.target.protocol),
            "host_ip": str(self.target.host_ip) if self.target.host_ip else None,
            "stages": [stage.to_json() for stage in self.stages],
            "verdict": str(self.outcome) if self.outcome else None,
            "by": self.by,
            "others": self.others,
            "fails_at": self.failure.name if self.failure else None,
            "answered": self.answered,
        }
