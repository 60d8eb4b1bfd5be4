"""A container as far as ports are concerned."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ctrport.model.key import Key as Key  # noqa: PLC0414, TC001 - known to most from here

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from ctrport.model.bindings import Listener
    from ctrport.model.ports import PortMapping, Protocol


class Status(enum.StrEnum):
    """A task's status in containerd's words; NONE is a container without a task."""

    NONE = "none"
    UNKNOWN = "unknown"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    PAUSING = "pausing"

    @property
    def live(self) -> bool:
        """Whether a process exists whose ports are to be served; a paused one keeps its ports."""
        return self in (Status.RUNNING, Status.PAUSED, Status.PAUSING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod as Kubernetes names it: who a container belongs to, for people and for the policy."""

    namespace: str
    name: str
    uid: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What a pod's pause container says of the pod's ports."""

    pod: Pod | None = None  # None: no name and namespace that could be read
    publish: str = ""  # the pod's annotation
    host_network: bool = False
    host_ports: tuple[PortMapping, ...] = ()  # published by the CNI plugin portmap
    problem: str = ""  # why the metadata or the annotation could not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What containerd knows of a container, decoded: its record and the publish request in it."""

    key: Key
    created_at: int  # nanoseconds since the epoch: the order in which host ports are given out
    image: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)  # of the OCI spec
    extensions: dict[str, bytes] = field(default_factory=dict)  # payloads by name; ours, and the CRI plugin's
    netns: str | None = None  # path joined by the OCI spec; None: a namespace of its own
    host_network: bool = False  # the OCI spec names no network namespace at all
    snapshotter: str = ""
    snapshot_key: str = ""
    sandbox: Sandbox | None = None  # of the pod whose pause container this is

    @property
    def name(self) -> str:
        """What people call it: a pod by namespace and name, any other container by its id."""
        pod = self.sandbox.pod if self.sandbox else None
        return f"{pod.namespace}/{pod.name}" if pod else self.key.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The running side of a container."""

    pid: int
    status: Status
    exit_status: int = 0


class Start(NamedTuple):
    """What the event of a task's start tells: it had this process then, and the record that it was made from."""

    pid: int
    at: float  # seconds since boot
    container: Container | None = None  # None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a container's ports are reached from this host."""

    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    interface: str | None = None  # of the host, towards the container: bridge or veth


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A container that asks for ports: the unit that host ports are given to."""

    key: Key
    created_at: int
    requests: tuple[PortMapping, ...] = ()
    asked_at: dict[PortMapping, int] = field(default_factory=dict)  # of requests that came later than the container
    exposed: tuple[tuple[int, Protocol], ...] | None = None  # the image's ports, where the annotation says `all`
    problems: tuple[str, ...] = ()  # specs that could not be read, each with its reason
    endpoint: Endpoint | None = None  # None: not running, or no address
    pod: Pod | None = None  # of Kubernetes; None: a container of nobody's cluster
    labels: tuple[tuple[str, str], ...] = ()  # of the container; its image's are among them
    host_ports: tuple[Listener, ...] = ()  # that others translate to it: a pod's hostPorts

    def rank_of(self, mapping: PortMapping) -> int:
        """Give when a request was made, by which host ports are given out: nobody is overtaken by a later wish."""
        return max(self.created_at, self.asked_at.get(mapping, 0))


def title(owner: Key, pod: Pod | None) -> str:
    """Name a container to people; a pod by its own name, as the id of its pause container says nothing."""
    return f"pod {pod.namespace}/{pod.name}" if pod else f"container {owner}"
