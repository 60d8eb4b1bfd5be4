"""The words on a container that are addressed to us.

They are OCI annotations of the container's spec, and for a pod the annotations of the pod. A label says nothing
here unless the policy trusts labels: most clients of containerd make an image's labels the container's, so a label
can be the wish of an image's author. (What `ctr run --label` sets is an annotation as well, and from the one who
runs it.)
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from ctrport.model import ports
from ctrport.model.bindings import Listener
from ctrport.model.workload import Sandbox, Workload

if TYPE_CHECKING:
    from collections.abc import Collection

    from ctrport.model.ports import PortMapping
    from ctrport.model.workload import Container, Endpoint

PUBLISH = "ctrport.io/publish"  # port specs, separated by commas or white space
NETWORK = "ctrport.io/network"  # by `ctrport run`: the network that the container is on
AUTO_REMOVE = "ctrport.io/rm"  # by `ctrport run -d --rm`: remove the container once it has exited

# The CRI plugin keeps pods here, and sets the label on all their containers. The pause container's stands for the
# pod; nothing is read off the others, so that a pod is not published once more for each of them.
CRI_NAMESPACE = "k8s.io"
CRI_KIND = "io.cri-containerd.kind"
# dockerd keeps its containers here, and publishes their ports itself.
FOREIGN_NAMESPACES = frozenset({"moby", "plugins.moby"})


def asks(container: Container, *, trust_labels: bool = False) -> bool:
    """Whether a container matters to ports: it asks for some, cannot be understood, or has some by other means."""
    if sandbox := container.sandbox:
        return bool(_wish(container, trust_labels=False) or sandbox.problem or sandbox.host_ports)
    return bool(_wish(container, trust_labels=trust_labels))


def is_auto_remove(container: Container) -> bool:
    """Whether a container is to be removed once it has exited. A pod's containers are the kubelet's to remove."""
    return container.annotations.get(AUTO_REMOVE) == "true" and not _in_pod(container)


def read_workload(
    container: Container,
    endpoint: Endpoint | None,
    *,
    internal: Collection[str] = (),
    trust_labels: bool = False,
) -> Workload | None:
    """Give what a container asks for, None when it asks for nothing or must not ask.

    `internal` are the bridges of networks whose containers have no published ports.
    """
    if not asks(container, trust_labels=trust_labels):
        return None
    sandbox = container.sandbox or Sandbox()
    wish = _wish(container, trust_labels=trust_labels)
    mappings, errors = ports.parse_list(wish)
    problems = [*filter(None, [sandbox.problem]), *(error.message for error in errors)]
    what = "pod" if container.sandbox else "container"
    if container.host_network or sandbox.host_network:
        if wish:
            problems.insert(0, f"the {what} uses the host's network: its ports are the host's already")
        mappings, endpoint = (), None  # its interface would be one of the host's uplinks
    elif endpoint is not None and endpoint.interface in internal:
        problems.insert(0, f"the {what} is on an internal network: its ports are not published")
        mappings = ()
    if sandbox.pod:  # the id of a pause container tells people nothing
        problems = [f"pod {container.name}: {problem}" for problem in problems]
    return Workload(
        key=container.key,
        created_at=container.created_at,
        requests=mappings,
        problems=tuple(problems),
        endpoint=endpoint,
        labels=tuple(sorted(container.labels.items())),
        pod=sandbox.pod,
        host_ports=tuple(_held(container.name, mapping, endpoint) for mapping in sandbox.host_ports),
    )


def _wish(container: Container, *, trust_labels: bool) -> str:
    """Give the text of a container's port specs: a pod's from its annotations, another's from its OCI spec.

    A label's only where there is no annotation, and labels are trusted.
    """
    if container.sandbox is not None:
        return container.sandbox.publish.strip()
    if container.key.namespace in FOREIGN_NAMESPACES or _in_pod(container):
        return ""
    specs = container.annotations.get(PUBLISH)
    if specs is None and trust_labels:
        specs = container.labels.get(PUBLISH)
    return (specs or "").strip()


def _in_pod(container: Container) -> bool:
    return container.key.namespace == CRI_NAMESPACE and CRI_KIND in container.labels


def _held(pod: str, mapping: PortMapping, endpoint: Endpoint | None) -> Listener:
    """Give a pod's hostPort as what stands in the way of others: in the families that the pod has."""
    families = [f for f, address in ((4, endpoint.ipv4), (6, endpoint.ipv6)) if address] if endpoint else []
    host_ip = mapping.host_ip
    return Listener(
        protocol=mapping.protocol,
        port=mapping.host_port or 0,
        address=host_ip or IPv4Address(0),
        families=tuple(families if host_ip is None else {host_ip.version}.intersection(families)),
        holder=f"the hostPort of pod {pod}",
        translated=True,
    )
