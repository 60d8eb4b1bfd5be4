"""What doctor finds, as data: a stable code, how bad it is, what is wrong, and the commands that mend it.

Knows nothing of how anything is found. Every code has its place in docs/firewalls.md, which a test compares.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Severity(enum.StrEnum):
    """SERIOUS: a port does not work, or nobody can tell. WARNING: it works, but not for long or for everybody."""

    SERIOUS = "serious"
    WARNING = "warning"
    NOTE = "note"


class Code(enum.StrEnum):
    """The name of a kind of finding: it stays as it is within a major version."""

    # of the host
    NOT_ROOT = "not-root"
    COULD_NOT_LOOK = "could-not-look"
    KERNEL_TOO_OLD = "kernel-too-old"
    KERNEL_FEATURE_MISSING = "kernel-feature-missing"
    NFTABLES_MISSING = "nftables-missing"
    NFTABLES_OLD = "nftables-old"
    IP_FORWARD_OFF = "ip-forward-off"
    IPV6_FORWARD_OFF = "ipv6-forward-off"
    ROUTE_LOCALNET_OFF = "route-localnet-off"
    RP_FILTER_STRICT = "rp-filter-strict"
    ROUTER_ADVERTISEMENTS = "router-advertisements"
    SYSCTL_READ_ONLY = "sysctl-read-only"
    BAD_CONFIGURATION = "bad-configuration"
    FORWARD_DROP = "forward-drop"
    FIREWALLD_ZONE = "firewalld-zone"
    FIREWALL_UNREAD = "firewall-unread"
    PORT_CONFLICT = "port-conflict"
    PORT_REFUSED = "port-refused"
    BAD_ANNOTATION = "bad-annotation"
    LISTENER_SHADOWED = "listener-shadowed"
    SUBNET_COLLISION = "subnet-collision"
    BRIDGE_MISSING = "bridge-missing"
    DRIFT = "drift"
    CONTAINERD_AWAY = "containerd-away"
    NO_WATCHER = "no-watcher"
    WATCHER_STUCK = "watcher-stuck"
    WATCHER_NOT_READY = "watcher-not-ready"
    WATCHER_ELSEWHERE = "watcher-elsewhere"
    WATCHER_BEHIND = "watcher-behind"
    UNDONE = "undone"
    OPEN_FILES_LIMIT = "open-files-limit"
    CONNTRACK_FULL = "conntrack-full"
    TASKS_UNCERTAIN = "tasks-uncertain"
    # of one port
    NOT_PUBLISHED = "not-published"
    IPV6_LOOPBACK = "ipv6-loopback"
    ELEMENT_MISSING = "element-missing"
    CONTAINER_NOT_RUNNING = "container-not-running"
    CONTAINER_NOT_LISTENING = "container-not-listening"
    CONTAINER_LOOPBACK_ONLY = "container-loopback-only"
    CONTAINER_ONE_FAMILY = "container-one-family"
    CONTAINER_NO_ANSWER = "container-no-answer"
    OTHER_TRANSLATION = "other-translation"
    HOST_DROP = "host-drop"
    NO_ANSWER = "no-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    code: Code
    severity: Severity
    what: str  # one sentence with names in it
    detail: str = ""  # what was seen; may have several lines
    fix: tuple[str, ...] = ()  # lines for a shell, to be run as they are; what no command does stands after a #

    @property
    def serious(self) -> bool:
        return self.severity is Severity.SERIOUS

    def to_json(self) -> dict[str, Any]:
        """Give it as plain JSON."""
        return {
            "code": str(self.code),
            "severity": str(self.severity),
            "what": self.what,
            "detail": self.detail,
            "fix": list(self.fix),
        }


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """Give findings once each, the serious ones first."""
    rank = list(Severity)
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: rank.index(finding.severity)))
