"""The words on a container that are addressed to us, and what they come to.

They are OCI annotations of the container's spec, and the extension that `publish` and `unpublish` write. A label
says nothing here unless the policy trusts labels: most clients of containerd make an image's labels the
container's, so a label can be the wish of an image's author. (What `ctr run --label` sets is an annotation as well,
and from the one who runs it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctrport.errors import InputError, PortSpecError
from ctrport.model import amendment, ports
from ctrport.model.amendment import EXTENSION, Amendment
from ctrport.model.ports import PortMapping, Protocol
from ctrport.model.workload import Endpoint, Workload

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ctrport.model.workload import Container

PUBLISH = "ctrport.io/publish"  # port specs, separated by commas or white space
NETWORK = "ctrport.io/network"  # by `ctrport run`: the network that the container is on
AUTO_REMOVE = "ctrport.io/rm"  # by `ctrport run -d --rm`: remove the container once it has exited
ALL = "all"  # among the port specs: every exposed port of the image that is not named, as `docker run -P`

# Containers of a cluster's pods are not ours to publish: that would go round Pod Security's ban of hostPort.
CRI_KIND = "io.cri-containerd.kind"
NERDCTL = "nerdctl/networks"  # on every container of nerdctl
# dockerd keeps its containers here, and publishes their ports itself.
FOREIGN_NAMESPACES = frozenset({"moby", "plugins.moby"})

Exposed = tuple[tuple[int, Protocol], ...]


def asked(container: Container, *, trust_labels: bool) -> str:
    """Give the port specs on a container; a label's only where there is no annotation.

    nerdctl has its CNI plugins publish what `nerdctl run -p` asks for, and its containers are left alone unless an
    annotation or `publish` asks: those are words for us and nobody else.
    """
    specs = container.annotations.get(PUBLISH)
    if specs is None and trust_labels and not container.labels.keys() & {CRI_KIND, NERDCTL}:
        specs = container.labels.get(PUBLISH)
    return (specs or "").strip()


def asks_for_exposed(specs: str) -> bool:
    """Whether specs can only be read with the image's exposed ports."""
    return ALL in ports.specs(specs)


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
    """Say why a container's ports are not ours to publish; empty when they are."""
    if container.key.namespace in FOREIGN_NAMESPACES:
        return "the container is dockerd's, which publishes its ports itself"
    if CRI_KIND in container.labels:
        return "the container belongs to a pod, and pods publish nothing"
    if container.host_network:
        return "the container uses the host's network: its ports are the host's already"
    return ""


def mappings_of(
    specs: str, image: str, exposed: Exposed | None
) -> tuple[tuple[PortMapping, ...], tuple[PortSpecError, ...]]:
    """Give what the specs on a container ask for, and what of them cannot be read.

    `exposed` are the image's ports, None when they are not known.
    """
    if not asks_for_exposed(specs):
        return ports.parse_list(specs)
    mappings, errors = ports.parse_list(" ".join(spec for spec in ports.specs(specs) if spec != ALL))
    if exposed is None:
        unknown = PortSpecError(f"port spec {ALL!a}: image {image!a} is not here to say what it exposes")
        return mappings, (*errors, unknown)
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
    exposed: Exposed | None = None,
    trust_labels: bool = False,
) -> Workload | None:
    """Give what a container asks for, None when it asks for nothing or must not ask.

    `internal` are the bridges of networks whose containers have no published ports.
    """
    specs = asked(container, trust_labels=trust_labels)
    reason = barred(container)
    if not (specs or EXTENSION in container.extensions) or (reason and not container.host_network):
        return None
    mappings, errors = mappings_of(specs, container.image, exposed)
    changes, problems = amended(container)
    problems = (*(error.message for error in errors), *problems)
    requests = changes.apply(mappings)
    if not reason and endpoint is not None and endpoint.interface in internal:
        reason = "the container is on an internal network: its ports are not published"
    if reason:
        problems, requests = (reason, *problems), ()
    return Workload(
        key=container.key,
        created_at=container.created_at,
        requests=requests,
        asked_at=changes.added,
        exposed=exposed,
        problems=problems,
        endpoint=endpoint,
        labels=tuple(sorted(container.labels.items())),
    )
