"""The operator's rules as data: who may publish what. What they come to for a container is known by `grants`.

By itself, as every command reads its settings, and only who gives out ports applies the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ctrport.model.ports import MAX_PORT

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from ctrport.model.ports import Protocol

    IPNetwork = IPv4Network | IPv6Network


class Span(NamedTuple):
    """Ports from the first to the last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


EVERY_PORT = (Span(1, MAX_PORT),)

# A pod on such a port could take a node's or the cluster's traffic to itself. kubernetes.io, "Ports and Protocols":
# 2379-2380 etcd, 6443 API server, 10250 kubelet, 10256 kube-proxy's health, 10257 controller manager, 10259
# scheduler, 30000-32767 NodePort. Kubernetes' pkg/cluster/ports: 10248 kubelet's health, 10249 kube-proxy's
# metrics, 10255 kubelet's read-only port, 10258 and 10260 cloud controller manager.
PROTECTED = (
    Span(1, 1023),
    Span(2379, 2380),
    Span(6443, 6443),
    Span(10248, 10250),
    Span(10255, 10260),
    Span(30000, 32767),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Whom it is about: containers of exactly one kind of namespace. What it allows: None is without a limit."""

    containerd_namespaces: tuple[str, ...] = ()  # plain containers; "*" stands for any characters
    kubernetes_namespaces: tuple[str, ...] = ()  # pods
    labels: tuple[tuple[str, str], ...] = ()  # that the container, or the pod, must have
    host_ports: tuple[Span, ...] | None = None  # None: all but protected ones
    host_ips: tuple[IPNetwork, ...] | None = None
    protocols: tuple[Protocol, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of a host."""

    trust_labels: bool = False  # whether the label ctrport.io/publish counts as the annotation does
    protected_ports: tuple[Span, ...] = ()  # refused to pods besides PROTECTED
    allow: tuple[Rule, ...] = ()
