"""The words on a container that are addressed to us.

They are OCI annotations of the container's spec. A label says nothing here unless the policy trusts labels: most
clients of containerd make an image's labels the container's, so a label can be the wish of an image's author. (What
`ctr run --label` sets is an annotation as well, and from the one who runs it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrport.model import ports
from ctrport.model.workload import Endpoint, Workload

if TYPE_CHECKING:
    from collections.abc import Collection

    from ctrport.model.workload import Container

PUBLISH = "ctrport.io/publish"  # port specs, separated by commas or white space
NETWORK = "ctrport.io/network"  # by `ctrport run`: the network that the container is on
AUTO_REMOVE = "ctrport.io/rm"  # by `ctrport run -d --rm`: remove the container once it has exited

# Containers of a cluster's pods are not ours to publish: that would go round Pod Security's ban of hostPort.
CRI_KIND = "io.cri-containerd.kind"
# dockerd keeps its containers here, and publishes their ports itself.
FOREIGN_NAMESPACES = frozenset({"moby", "plugins.moby"})


def asked(container: Container, *, trust_labels: bool) -> str:
    """Give the port specs on a container; a label's only where there is no annotation."""
    specs = container.annotations.get(PUBLISH)
    if specs is None and trust_labels and CRI_KIND not in container.labels:
        specs = container.labels.get(PUBLISH)
    return (specs or "").strip()


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
    specs = asked(container, trust_labels=trust_labels)
    if not specs or container.key.namespace in FOREIGN_NAMESPACES:
        return None
    if CRI_KIND in container.labels:
        return None
    mappings, errors = ports.parse_list(specs)
    problems = tuple(error.message for error in errors)
    if container.host_network:
        problems = ("the container uses the host's network: its ports are the host's already", *problems)
        mappings = ()
    elif endpoint is not None and endpoint.interface in internal:
        problems = ("the container is on an internal network: its ports are not published", *problems)
        mappings = ()
    return Workload(
        key=container.key,
        created_at=container.created_at,
        requests=mappings,
        problems=problems,
        endpoint=endpoint,
        labels=tuple(sorted(container.labels.items())),
    )
