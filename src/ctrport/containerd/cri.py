"""What containerd's CRI plugin writes on a pod's pause container, in the words of the model.

Pure, and failing on nothing: annotations and labels are whatever the pod's author wrote, and the record's form is
the CRI plugin's own affair. What cannot be read becomes the pod's problem, and nobody else's.

Sources: containerd's internal/cri/store/sandbox (the extension and its JSON; zero values are left out) and CRI's
api.proto (PodSandboxConfig). Seen alike in containerd 1.6, 1.7 and 2.1. A pod's annotations are here only: the
OCI spec has them just where an administrator has set `pod_annotations`.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from ctrport.model.annotations import CRI_KIND, CRI_NAMESPACE
from ctrport.model.ports import SPACE, PortMapping, Protocol
from ctrport.model.words import PUBLISH
from ctrport.model.workload import Pod, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

METADATA: Final = "io.cri-containerd.sandbox.metadata"
SANDBOX: Final = "sandbox"  # the kind of a pause container; "container" is every other of a pod

_NODE: Final = 2  # NamespaceMode: the network namespace is the host's
_PROTOCOLS: Final = {0: Protocol.TCP, 1: Protocol.UDP, 2: Protocol.SCTP}
# Kubernetes' own rule is stricter. Nothing else gets into messages, and no policy has to think of it.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def read(namespace: str, labels: Mapping[str, str], extensions: Mapping[str, bytes]) -> Sandbox | None:
    """Give what is known of a pod from its pause container's record; None for any other container.

    Images set labels, and the CRI plugin sets the kind after them; an extension is out of an image's reach.
    """
    if namespace != CRI_NAMESPACE or labels.get(CRI_KIND) != SANDBOX:
        return None
    metadata = extensions.get(METADATA)
    return Sandbox() if metadata is None else sandbox(metadata)


def sandbox(metadata: bytes) -> Sandbox:
    """Read a sandbox's metadata, JSON."""
    try:
        record = json.loads(metadata)
    except (ValueError, RecursionError):  # ValueError: JSON and UTF-8 both, and numbers of too many digits
        return Sandbox(problem="the metadata of its sandbox is not JSON")
    config = _member(record, "Metadata", "Config")
    annotations = config.get("annotations") or {}
    if not isinstance(annotations, dict):
        return Sandbox(problem="the annotations in the metadata of its sandbox are not an object")
    pod, publish, problem = _pod(config), annotations.get(PUBLISH, ""), ""
    if not isinstance(publish, str):
        publish, problem = "", f"the annotation {PUBLISH} is not text"
    elif publish.strip(SPACE) and pod is None:
        publish, problem = "", "the pod has no name and namespace as Kubernetes gives them"
    options = _member(config, "linux", "security_context", "namespace_options")
    host_network = options.get("network") == _NODE
    return Sandbox(
        pod=pod,
        publish=publish,
        host_network=host_network,
        # The kubelet names every port of a pod on the host's network a hostPort; there its process listens.
        host_ports=() if host_network else tuple(_host_ports(config)),
        problem=problem,
    )


def _pod(config: dict[str, Any]) -> Pod | None:
    metadata = _member(config, "metadata")
    namespace, name, uid = (_name(metadata.get(field)) for field in ("namespace", "name", "uid"))
    if not namespace or not name:
        return None
    labels = _member(config, "labels")
    texts = ((key, value) for key, value in labels.items() if isinstance(value, str))
    return Pod(namespace=namespace, name=name, uid=uid, labels=tuple(sorted(texts)))


def _host_ports(config: dict[str, Any]) -> Iterator[PortMapping]:
    """Yield the hostPorts, which the CNI plugin portmap publishes; a port without one is mere documentation."""
    mappings = config.get("port_mappings")
    for entry in mappings if isinstance(mappings, list) else ():
        if not isinstance(entry, dict) or not entry.get("host_port"):
            continue
        try:
            yield PortMapping(
                container_port=_number(entry.get("container_port")),
                host_port=_number(entry.get("host_port")),
                protocol=_PROTOCOLS[_number(entry.get("protocol", 0))],
                host_ip=ip_address(host_ip) if isinstance(host_ip := entry.get("host_ip") or None, str) else None,
            )
        except (KeyError, ValueError):  # portmap refuses it as well
            continue


def _member(value: Any, *path: str) -> dict[str, Any]:
    """Give the object at the end of a path of members, empty where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _name(value: Any) -> str:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def _number(value: Any) -> int:
    """Give an integer; ValueError for anything else, booleans too."""
    if type(value) is not int:
        raise ValueError(f"not an integer: {value!r}")
    return value
