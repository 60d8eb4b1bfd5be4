"""An image's configuration (exposed ports, entry point, environment), read from containerd's content store.

Sources: OCI image specification (index, manifest, config) and Docker's older media types of the same shape;
which one a blob is, is told by its members, as the media type may be missing.
"""

from __future__ import annotations

import json
import platform
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from ctrport.containerd import methods
from ctrport.containerd.pb import api_pb2 as api
from ctrport.errors import ContainerdError, NotFoundError

if TYPE_CHECKING:
    from ctrport.containerd.rpc import Rpc

# `uname -m` -> GOARCH, as the index of an image spells it.
_ARCHITECTURES: Final = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386",
    "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64", "loongarch64": "loong64",
}  # fmt: skip
_LARGEST: Final = 8 << 20  # bytes; containerd itself reads no larger manifest
_DEEPEST: Final = 3  # an index may name an index; nobody nests further


async def config(rpc: Rpc, namespace: str, ref: str) -> dict[str, Any] | None:
    """Give the OCI image config of `ref` for this machine; None when containerd has no image of that name.

    Raises NotFoundError when the image is there without content for this machine's architecture.
    """
    try:
        found = await rpc.unary(
            methods.GET_IMAGE, api.GetImageRequest(name=ref), f"look up image {ref}", namespace=namespace
        )
    except NotFoundError:
        return None
    manifest = await _manifest(rpc, namespace, ref, found.image.target.digest, _DEEPEST)
    descriptor = manifest.get("config") if manifest else None
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str):
        message = f"image {ref} has no content for {architecture()} in containerd's namespace {namespace}"
        raise NotFoundError(message, hint=f"ctr -n {namespace} images pull {ref}")
    return await _json(rpc, namespace, ref, digest)


def architecture() -> str:
    """Give this machine's architecture in the words of an image index."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


async def _manifest(rpc: Rpc, namespace: str, ref: str, digest: str, depth: int) -> dict[str, Any] | None:
    """Find the manifest for this machine at or below `digest`; None when its content is not here."""
    try:
        blob = await _json(rpc, namespace, ref, digest)
    except NotFoundError:
        return None
    entries = blob.get("manifests")
    if not isinstance(entries, list):
        return blob
    if depth == 0:
        return None
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("digest"), str) and _fits(entry.get("platform")):
            manifest = await _manifest(rpc, namespace, ref, entry["digest"], depth - 1)
            if manifest is not None:
                return manifest
    return None


def _fits(wanted: Any) -> bool:
    """Whether an index entry is for this machine; of several variants, the one that was pulled is read."""
    if not isinstance(wanted, dict):
        return True  # `platform` is optional: the only entry of a one-platform image
    return wanted.get("os") == "linux" and wanted.get("architecture") == architecture()


async def _json(rpc: Rpc, namespace: str, ref: str, digest: str) -> dict[str, Any]:
    what = f"read {digest} of image {ref}"
    data = bytearray()
    request = api.ReadContentRequest(digest=digest)
    async with aclosing(rpc.stream(methods.READ_CONTENT, request, what, namespace=namespace)) as parts:
        async for part in parts:
            data += part.data
            if len(data) > _LARGEST:
                raise ContainerdError(f"cannot {what}: larger than {_LARGEST} bytes")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ContainerdError(f"cannot {what}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ContainerdError(f"cannot {what}: not a JSON object")
    return value
