"""The words on a container that are addressed to us, and what they come to.

They are OCI annotations of the container's spec, for a pod the annotations of the pod, and the extension that
`publish` and `unpublish` write. A label says nothing here unless the policy trusts labels: most clients of
containerd make an image's labels the container's, so a label can be the wish of an image's author. (What
`ctr run --label` sets is an annotation as well, and from the one who runs it.)
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from ctrport.errors import InputError, PortSpecError
from ctrport.model import amendment, ports
from ctrport.model.amendment import EXTENSION, Amendment
from ctrport.model.bindings import Listener
from ctrport.model.ports import PortMapping, Protocol
from ctrport.model.words import AUTO_REMOVE, PUBLISH
from ctrport.model.workload import Sandbox, Workload

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ctrport.model.workload import Container, Endpoint

ALL = "all"  # among the port specs: every exposed port of the image that is not named, as `docker run -P`

# The CRI plugin keeps pods here, and sets the label on all their containers. The pause container's stands for the
# pod; nothing is read off the others, so that a pod is not published once more for each of them.
CRI_NAMESPACE = "k8s.io"
CRI_KIND = "io.cri-containerd.kind"
# dockerd keeps its containers here, and publishes their ports itself.
FOREIGN_NAMESPACES = frozenset({"moby", "plugins.moby"})
NERDCTL = "nerdctl/"  # how the labels begin that nerdctl gives to each of its containers, as nerdctl/networks

Exposed = tuple[tuple[int, Protocol], ...]


def asks(container: Container, *, trust_labels: bool = False) -> bool:
    """Whether a container matters to ports: it asks for some, cannot be understood, or has some by other means."""
    if _barred_by_owner(container):
        return False
    sandbox = container.sandbox or Sandbox()
    return bool(
        wish(container, trust_labels=trust_labels)
        or EXTENSION in container.extensions
        or sandbox.problem
        or sandbox.host_ports
    )


def is_auto_remove(container: Container) -> bool:
    """Whether a container is to be removed once it has exited. A pod's containers are the kubelet's to remove."""
    return container.annotations.get(AUTO_REMOVE) == "true" and not in_pod(container)


def in_pod(container: Container) -> bool:
    """Whether a container is one of a pod's, the pause container too."""
    return container.key.namespace == CRI_NAMESPACE and CRI_KIND in container.labels


def asks_for_exposed(container: Container, *, trust_labels: bool = False) -> bool:
    """Whether what is asked for can only be read with the image's exposed ports."""
    return ALL in ports.specs(wish(container, trust_labels=trust_labels)) and container.sandbox is None


def exposed_ports(image_config: dict[str, Any]) -> Exposed:
    """Give what an image's config exposes; what is no port there is left out, as it is a stranger's text."""
    config = image_config.get("config")
    names = config.get("ExposedPorts") if isinstance(config, dict) else None
    found = set()
    for name in names if isinstance(names, dict) else ():
        try:
            found.add(ports.parse_port_argument(name))
        except PortSpecError:
            continue
    return tuple(sorted(found))


def automatic(exposed: Iterable[tuple[int, Protocol]], named: Iterable[PortMapping]) -> tuple[PortMapping, ...]:
    """Give Docker's -P: a port of the host's choice for each exposed port that no mapping names."""
    taken = {(mapping.container_port, mapping.protocol) for mapping in named}
    return tuple(PortMapping(container_port=p, protocol=proto) for p, proto in sorted({*exposed} - taken))


def barred(container: Container) -> str:
    """Say why a container's ports are not ours to publish; empty when they are.

    Containers of nerdctl are not barred. It has its CNI plugins publish what `nerdctl run -p` asks for, of which
    none of the words that we read says anything: what is read on them was meant for us.
    """
    if reason := _barred_by_owner(container):
        return reason
    what = "pod" if container.sandbox else "container"
    if container.host_network or (container.sandbox and container.sandbox.host_network):
        return f"the {what} uses the host's network: its ports are the host's already"
    return ""


def annotated(
    container: Container, exposed: Exposed | None, *, trust_labels: bool = False
) -> tuple[tuple[PortMapping, ...], tuple[PortSpecError, ...]]:
    """Give what the annotation alone asks for, and what of it cannot be read.

    `exposed` are the image's ports, None when they are not known.
    """
    value = wish(container, trust_labels=trust_labels)
    if ALL not in ports.specs(value):
        return ports.parse_list(value)
    mappings, errors = ports.parse_list(" ".join(spec for spec in ports.specs(value) if spec != ALL))
    if exposed is None:
        why = "a pod has no image to say" if container.sandbox else f"image {container.image!a} is not here to say"
        return mappings, (*errors, PortSpecError(f"port spec {ALL!a}: {why} what it exposes"))
    return (*mappings, *automatic(exposed, mappings)), errors


def amended(container: Container) -> tuple[Amendment, tuple[str, ...]]:
    """Give what was changed since the container was made; what cannot be read counts as no change."""
    try:
        return amendment.read(container.extensions.get(EXTENSION)), ()
    except InputError as error:
        return Amendment(), (error.message,)


def read_workload(
    container: Container,
    endpoint: Endpoint | None,
    *,
    internal: Collection[str] = (),
    trust_labels: bool = False,
    exposed: Exposed | None = None,
) -> Workload | None:
    """Give what a container asks for, None when it asks for nothing or must not ask.

    `internal` are the bridges of networks whose containers have no published ports.
    """
    if not asks(container, trust_labels=trust_labels):
        return None
    sandbox = container.sandbox or Sandbox()
    asked, errors = annotated(container, exposed, trust_labels=trust_labels)
    changes, unread = amended(container)
    requests = changes.apply(asked)
    problems = [*filter(None, [sandbox.problem]), *(error.message for error in errors), *unread]
    if reason := barred(container):
        endpoint = None  # its interface would be one of the host's uplinks
    elif endpoint is not None and endpoint.interface in internal:
        what = "pod" if container.sandbox else "container"
        reason = f"the {what} is on an internal network: its ports are not published"
    if reason:
        if requests or errors:
            problems.insert(0, reason)
        requests = ()
    if sandbox.pod:  # the id of a pause container tells people nothing
        problems = [f"pod {container.name}: {problem}" for problem in problems]
    return Workload(
        key=container.key,
        created_at=container.created_at,
        requests=requests,
        asked_at=changes.added,
        exposed=exposed,
        problems=tuple(problems),
        endpoint=endpoint,
        labels=tuple(sorted(container.labels.items())),
        pod=sandbox.pod,
        host_ports=tuple(_held(container.name, mapping, endpoint) for mapping in sandbox.host_ports),
    )


def wish(container: Container, *, trust_labels: bool) -> str:
    """Give the text of a container's port specs: a pod's from its annotations, another's from its OCI spec.

    A label's only where there is no annotation, and labels are trusted; on nerdctl's containers never: it publishes
    by itself, and gives containers the labels of their images. Its annotations are of the one who ran it.
    """
    if container.sandbox is not None:
        return container.sandbox.publish.strip(ports.SPACE)
    if _barred_by_owner(container):
        return ""
    specs = container.annotations.get(PUBLISH)
    if specs is None and trust_labels and not any(name.startswith(NERDCTL) for name in container.labels):
        specs = container.labels.get(PUBLISH)
    return (specs or "").strip(ports.SPACE)


def _barred_by_owner(container: Container) -> str:
    """Say why a container is none of ours to look at; empty when it is."""
    if container.key.namespace in FOREIGN_NAMESPACES:
        return "the container is dockerd's, which publishes its ports itself"
    if in_pod(container) and container.sandbox is None:
        return "the container is a part of a pod: a pod's ports are published as a whole, by its NAMESPACE/NAME"
    return ""


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
