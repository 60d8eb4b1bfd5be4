"""The words on a container that are addressed to us.

All of them are OCI annotations of the container's spec. Labels are not read: an image's labels become the
container's, so a label can be the wish of an image's author.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrport.model import ports
from ctrport.model.workload import Endpoint, Workload

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ctrport.model.workload import Container

PUBLISH = "ctrport.io/publish"  # port specs, separated by commas or white space
NETWORK = "ctrport.io/network"  # by `ctrport run`: the network that the container is on
AUTO_REMOVE = "ctrport.io/rm"  # by `ctrport run -d --rm`: remove the container once it has exited

# Containers of a cluster's pods are not ours to publish: that would go round Pod Security's ban of hostPort.
CRI_KIND = "io.cri-containerd.kind"
# dockerd keeps its containers here, and publishes their ports itself.
FOREIGN_NAMESPACES = frozenset({"moby", "plugins.moby"})


def asks(annotations: Mapping[str, str]) -> bool:
    """Whether a container asks for ports at all."""
    return bool(annotations.get(PUBLISH, "").strip())


def read_workload(
    container: Container, endpoint: Endpoint | None, *, internal: Collection[str] = ()
) -> Workload | None:
    """Give what a container asks for, None when it asks for nothing or must not ask.

    `internal` are the bridges of networks whose containers have no published ports.
    """
    if not asks(container.annotations) or container.key.namespace in FOREIGN_NAMESPACES:
        return None
    if CRI_KIND in container.labels:
        return None
    mappings, errors = ports.parse_list(container.annotations[PUBLISH])
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
    )
