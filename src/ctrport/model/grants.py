"""What the operator's rules come to for a container.

A rule allows; what no rule allows is refused. Pods begin with nothing, plain containers with everything: whoever
reaches containerd's socket is root on this host already, while a pod's annotations are written by anybody who may
make pods. Knows containers, mappings and rules as data. Must not know where rules are written, or who holds a port.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, NamedTuple

from ctrport.model.policy import EVERY_PORT, PROTECTED, Span
from ctrport.model.ports import is_wildcard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.model.bindings import IPAddress
    from ctrport.model.policy import IPNetwork, Policy, Rule
    from ctrport.model.ports import PortMapping
    from ctrport.model.workload import Workload

EVERY_ADDRESS: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
BY_POLICY = "policy: "  # how the reason of a refusal by these rules begins
_QUOTED_LENGTH = 80
_LISTED = 12  # ports or addresses that a reason names


class Match(NamedTuple):
    """What a grant's rules say of one protocol on one host IP."""

    speaking: tuple[Rule, ...]  # those that allow the protocol
    fitting: tuple[Rule, ...]  # and the addresses
    spans: tuple[Span, ...]  # the ports that these open


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one container may publish; `rules` None is everything."""

    rules: tuple[Rule, ...] | None = None
    named: bool = True  # whether a rule names its namespace, though perhaps not its labels
    pods: bool = False
    namespace: str = ""  # Kubernetes' for a pod, else containerd's
    protected: tuple[Span, ...] = ()
    # Of all ports of a range the rules say the same; a container may ask for 10,000.
    _matches: dict[object, Match] = field(default_factory=dict, compare=False, repr=False)

    def spans(self, mapping: PortMapping, families: Iterable[int]) -> tuple[Span, ...]:
        """Give the host ports that a mapping may have, in order: a rule must allow all of it by itself."""
        if self.rules is None:
            return EVERY_PORT
        return self._match(mapping, tuple(families)).spans

    def refusal(self, mapping: PortMapping, families: Iterable[int], automatic: Span) -> str:
        """Say why a mapping may have no host port that it could have, and what mends it; empty when it may."""
        low, high = wanted = _wanted(mapping, automatic)
        if self.rules is None or any(within(self.spans(mapping, families), low, high)):
            return ""
        mend = [f"{'kubernetes' if self.pods else 'containerd'}_namespaces = [{_quote(self.namespace)}]"]
        mend.append(f"host_ports = [{low}]" if low == high else f'host_ports = ["{wanted}"]')
        if mapping.host_ip is not None and not is_wildcard(mapping.host_ip):
            mend.append(f'host_ips = ["{mapping.host_ip}"]')
        fault = self._fault(mapping, tuple(families), wanted)
        return f"{BY_POLICY}{fault}; to allow it, in config.toml: [[policy.allow]] {', '.join(mend)}"

    @property
    def subject(self) -> str:
        """The namespace in words."""
        return f"{'Kubernetes' if self.pods else 'containerd'} namespace {_quote(self.namespace)}"

    def _fault(self, mapping: PortMapping, families: tuple[int, ...], wanted: Span) -> str:
        rules = self.rules or ()
        if not rules and not self.named:
            return f"no rule allows pods of {self.subject} to publish"
        if not rules:
            return f"of the rules for {self.subject} none has labels of this {'pod' if self.pods else 'container'}"
        speaking, fitting, spans = self._match(mapping, families)
        if not speaking:
            allowed = sorted({p for rule in rules for p in rule.protocols or ()})
            return f"{self.subject} may not publish {mapping.protocol}; allowed: {_list(allowed)}"
        if not fitting:
            what = "every address of the host" if is_wildcard(mapping.host_ip) else f"host IP {mapping.host_ip}"
            addresses = dict.fromkeys(address for rule in speaking for address in rule.host_ips or ())
            return f"{self.subject} may not publish on {what}; allowed: {_list(map(_network_text, addresses))}"
        what = f"host port {wanted}" if wanted.first == wanted.last else f"any of host ports {wanted}"
        if mapping.host_port is None and mapping.host_port_pool is None:
            what = f"a port of the host's choice, which is one of {wanted}"
        if any(span.first <= wanted.first and wanted.last <= span.last for span in self.protected):
            what += ", which is protected and must be named" if mapping.host_port else ", which are protected"
        return f"{self.subject} may not publish on {what}; allowed: {_list(spans)}"

    def _match(self, mapping: PortMapping, families: tuple[int, ...]) -> Match:
        name = mapping.protocol, mapping.host_ip, families
        if name not in self._matches:
            speaking = [r for r in self.rules or () if r.protocols is None or mapping.protocol in r.protocols]
            fitting = [r for r in speaking if _covers(r, mapping.host_ip, families)]
            spans = _merged(span for rule in fitting for span in self._ports(rule))
            self._matches[name] = Match(tuple(speaking), tuple(fitting), spans)
        return self._matches[name]

    def _ports(self, rule: Rule) -> Iterator[Span]:
        """Give what a rule opens; of protected ports only what it names.

        To name a protected port is to write it alone, or in a range with nothing but protected ones: who allows
        1024-65535 has hardly thought of the kubelet.
        """
        for span in EVERY_PORT if rule.host_ports is None else rule.host_ports:
            if any(p.first <= span.first and span.last <= p.last for p in self.protected):
                yield span
            else:
                yield from _without(span, self.protected)


EVERYTHING = Grant()


def grant_of(policy: Policy, workload: Workload) -> Grant:
    """Give what a container may publish."""
    pod = workload.pod
    namespace = workload.key.namespace if pod is None else pod.namespace
    about = [
        rule
        for rule in policy.allow
        if _named(rule.containerd_namespaces if pod is None else rule.kubernetes_namespaces, namespace)
    ]
    if pod is None and not about:
        return EVERYTHING
    labels = frozenset(workload.labels if pod is None else pod.labels)
    return Grant(
        rules=tuple(rule for rule in about if labels.issuperset(rule.labels)),
        named=bool(about),
        pods=pod is not None,
        namespace=namespace,
        protected=() if pod is None else _merged((*PROTECTED, *policy.protected_ports)),
    )


def within(spans: Iterable[Span], low: int, high: int) -> Iterator[Span]:
    """Yield what of some spans lies between two ports, these included."""
    for span in spans:
        first, last = max(span.first, low), min(span.last, high)
        if first <= last:
            yield Span(first, last)


def _covers(rule: Rule, host_ip: IPAddress | None, families: Iterable[int]) -> bool:
    """Say whether all addresses of a mapping are allowed: a wildcard needs every address of its families."""
    if rule.host_ips is None:
        return True
    wanted = [EVERY_ADDRESS[f] for f in families]
    if host_ip is not None and not is_wildcard(host_ip):
        wanted = [ip_network(host_ip)]
    return all(any(_within(one, other) for other in rule.host_ips) for one in wanted)


def _wanted(mapping: PortMapping, automatic: Span) -> Span:
    if mapping.host_port is not None:
        return Span(mapping.host_port, mapping.host_port)
    return Span(*mapping.host_port_pool) if mapping.host_port_pool else automatic


def _named(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(".*".join(map(re.escape, p.split("*"))), name, re.DOTALL) for p in patterns)


def _within(one: IPNetwork, other: IPNetwork) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.subnet_of(other)
    return isinstance(other, IPv6Network) and one.subnet_of(other)


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Give the same ports in order, as few spans."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and span.first <= found[-1].last + 1:
            found[-1] = Span(found[-1].first, max(found[-1].last, span.last))
        else:
            found.append(span)
    return tuple(found)


def _without(span: Span, taken: Iterable[Span]) -> Iterator[Span]:
    """Yield what is left of a span; what is taken from it comes in order."""
    first = span.first
    for one in taken:
        if one.last < first:
            continue
        if one.first > span.last:
            break
        if one.first > first:
            yield Span(first, one.first - 1)
        first = one.last + 1
    if first <= span.last:
        yield Span(first, span.last)


def _list(allowed: Iterable[object]) -> str:
    texts = [str(each) for each in allowed]
    more = [f"{len(texts) - _LISTED} more"] if len(texts) > _LISTED else []
    return ", ".join([*texts[:_LISTED], *more]) or "none"


def _network_text(network: IPNetwork) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _quote(text: str) -> str:
    """Quote as TOML does; a namespace's name is somebody else's word, and may be anything."""
    return json.dumps(text if len(text) <= _QUOTED_LENGTH else f"{text[:_QUOTED_LENGTH]}...")
