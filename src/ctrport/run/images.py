"""The image of a container to be: its name in containerd, pulled if need be, and its labels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ctrport.errors import NotFoundError
from ctrport.run import names, process, translate

if TYPE_CHECKING:
    from ctrport.config import Settings
    from ctrport.containerd.client import Client
    from ctrport.run.options import Options


async def reference(settings: Settings, client: Client, options: Options) -> str:
    """Give the reference of an image that is here, pulled if need be."""
    full = names.full_reference(options.image)
    if options.pull != "always":
        for candidate in dict.fromkeys((full, options.image)):
            if await client.image_config(settings.namespace, candidate) is not None:
                return candidate
        if options.pull == "never":
            raise NotFoundError(
                f"image {full} is not in namespace {settings.namespace}, and --pull is never",
                hint=f"ctr -n {settings.namespace} images pull {full}",
            )
    await process.run(
        translate.ctr(settings, "images", "pull", full),
        f"pull image {full}",
        output=sys.stderr,
        interruptible=True,
        hint="check the name and the registry; an image from elsewhere comes by ctr images import FILE",
    )
    return full


async def labels(client: Client, namespace: str, options: Options, image: str) -> dict[str, str]:
    """Give the labels that the container will have, by which the policy may judge: `ctr` adds the image's."""
    if options.rootfs or not options.publish:
        return own_labels(options)
    config = await client.image_config(namespace, image) or {}
    found = (config.get("config") or {}).get("Labels")
    of_image = {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
    return {**of_image, **own_labels(options)}


def own_labels(options: Options) -> dict[str, str]:
    """Give the labels of `--label`."""
    return dict(label.partition("=")[::2] for label in options.labels)
