"""The table [policy] of config.toml."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import TYPE_CHECKING

from ctrport.config.place import Place
from ctrport.model.policy import Policy, Rule, Span
from ctrport.model.ports import MAX_PORT, Protocol

if TYPE_CHECKING:
    from ctrport.model.policy import IPNetwork

# containerd's pkg/identifiers allows 76 characters; Kubernetes' names (RFC 1123 labels) are a part of these.
_PATTERN = re.compile(r"[A-Za-z0-9*](?:[A-Za-z0-9._*-]{0,74}[A-Za-z0-9*])?")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_WHO = 'for example kubernetes_namespaces = ["web"], or containerd_namespaces = ["default"]'


def policy(at: Place) -> Policy:
    """Read the whole table."""
    return Policy(**at.read({"trust_labels": Place.flag, "protected_ports": _ports, "allow": _rules}))


def _rules(at: Place) -> tuple[Rule, ...]:
    return tuple(_rule(each) for each in at.items("rules", "a table [[policy.allow]] for each rule"))


def _rule(at: Place) -> Rule:
    found = at.read(
        {
            "containerd_namespaces": _names,
            "kubernetes_namespaces": _names,
            "labels": _labels,
            "host_ports": _ports,
            "host_ips": _networks,
            "protocols": _protocols,
        }
    )
    if ("containerd_namespaces" in found) == ("kubernetes_namespaces" in found):
        raise at.error("a rule is for containerd_namespaces or for kubernetes_namespaces", hint=_WHO)
    return Rule(**found)


def _names(at: Place) -> tuple[str, ...]:
    names = []
    for each in at.items("namespaces", '["web", "team-*"]'):
        if not isinstance(each.value, str) or not _PATTERN.fullmatch(each.value):
            raise at.error(f"{each.value!r} is not a namespace's name", hint='"*" stands for any characters')
        names.append(each.value)
    if not names:
        raise at.error("names no namespace, so the rule is for nobody", hint='["*"] is for all')
    return tuple(names)


def _labels(at: Place) -> tuple[tuple[str, str], ...]:
    if not isinstance(at.value, dict) or not all(isinstance(v, str) for v in at.value.values()):
        raise at.error(f"{at.value!r} is not a table of labels", hint='for example { tier = "edge" }')
    return tuple(sorted(at.value.items()))


def _ports(at: Place) -> tuple[Span, ...]:
    return tuple(_span(at, each.value) for each in at.items("host ports", '[443, "8000-8999"]'))


def _span(at: Place, value: object) -> Span:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _RANGE.fullmatch(text) if isinstance(text, str) else None
    if match is not None:
        span = Span(int(match[1]), int(match[2] or match[1]))
        if 1 <= span.first <= span.last <= MAX_PORT:
            return span
    raise at.error(f"{value!r} is not a port or a range of ports in 1-{MAX_PORT}", hint='[443, "8000-8999"]')


def _networks(at: Place) -> tuple[IPNetwork, ...]:
    networks = []
    for each in at.items("addresses", '["192.0.2.1", "2001:db8::/64"]'):
        try:
            if not isinstance(each.value, str):  # ip_network takes a number for an address
                raise ValueError("not text")  # noqa: TRY004, TRY301 - what ip_network says of all others
            networks.append(ip_network(each.value))
        except ValueError as error:
            raise at.error(
                f"{each.value!r} is not an address or a network: {error}",
                hint='["192.0.2.1", "2001:db8::/64"]; "0.0.0.0/0" and "::/0" are every address of their family',
            ) from None
    return tuple(networks)


def _protocols(at: Place) -> tuple[Protocol, ...]:
    protocols = []
    for each in at.items("protocols", '["tcp", "udp"]'):
        if each.value not in list(Protocol):
            raise at.error(f"{each.value!r} is not a protocol", hint=f"known are {', '.join(Protocol)}")
        protocols.append(Protocol(each.value))
    return tuple(protocols)
