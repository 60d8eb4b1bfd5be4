"""What must be clear before anything of a container is made: host, image, name, and which ports are meant."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrport.control import connect
from ctrport.errors import ConflictError, HostError, InputError, NotFoundError
from ctrport.network import networks
from ctrport.run import names, process, translate

if TYPE_CHECKING:
    from ctrport.config import Settings
    from ctrport.connection import Connection
    from ctrport.model.key import Key
    from ctrport.model.ports import PortMapping
    from ctrport.run.options import Options

log = logging.getLogger(__name__)


async def prepare(
    settings: Settings, connection: Connection, options: Options, key: Key
) -> tuple[Options, str, dict[str, Any]]:
    """Refuse what cannot be done. Gives the options with all ports, the image's name here and its configuration."""
    _check_host()
    _check_sources(options)
    image, config = await _image(settings, connection, options, key)
    options = options._replace(publish=_requests(settings, options, config))
    return options, image, config


def _check_host() -> None:
    """Refuse to begin what cannot be finished. HostError names what is missing."""
    if os.geteuid() != 0:
        raise HostError(
            "ctrport run makes namespaces and firewall rules: it must be root", hint="sudo ctrport run …"
        )
    if shutil.which("ctr") is None:
        raise HostError("the program ctr is not on the PATH", hint="apt-get install containerd")


def _check_sources(options: Options) -> None:
    """Refuse to mount what is not there. Docker makes a directory, which hides a typing error."""
    for entry in options.mounts:
        fields = dict(field.partition("=")[::2] for field in entry.split(","))
        source = fields["src"]
        if fields["type"] == "bind" and not Path(source).exists():
            raise InputError(
                f"{source!a}, to be mounted on {fields['dst']!a}, is not there", hint=f"mkdir -p {source}"
            )


def _check_restart_policy(options: Options, version: str) -> None:
    """Refuse a policy that this containerd would read as `always`: before 1.7 it knows no other."""
    major, _, rest = version.lstrip("v").partition(".")
    minor = rest.partition(".")[0]
    if options.restart.startswith("on-failure") and major == "1" and minor.isdecimal() and int(minor) < 7:  # noqa: PLR2004
        raise InputError(
            f"--restart {options.restart} needs containerd 1.7, this is {version}",
            hint="--restart always, or a newer containerd",
        )


async def _image(
    settings: Settings, connection: Connection, options: Options, key: Key
) -> tuple[str, dict[str, Any]]:
    """Give the image's name here and its configuration, once it is clear that the container can be made.

    The image is pulled if need be. A directory has no configuration.
    """
    if options.rootfs:
        await _prospect(settings, connection, options, key, [])
        return options.image, {}
    reference = names.full_reference(options.image)
    here = [] if options.pull == "always" else list(dict.fromkeys((reference, options.image)))
    found = await _prospect(settings, connection, options, key, here)
    if found["image"] is None:
        if options.pull == "never":
            raise NotFoundError(
                f"image {reference} is not in namespace {settings.namespace}, and --pull is never",
                hint=f"ctr -n {settings.namespace} images pull {reference}",
            )
        await process.run(
            translate.ctr(settings, "images", "pull", reference),
            f"pull image {reference}",
            output=sys.stderr,
            interruptible=True,
            hint="check the name and the registry; an image from elsewhere comes by ctr images import FILE",
        )
        found = await _prospect(settings, connection, options, key, [reference])
    return found["image"] or reference, found["config"] or {}


async def _prospect(
    settings: Settings, connection: Connection, options: Options, key: Key, images: list[str]
) -> dict[str, Any]:
    """Ask containerd, through the watcher where one runs, and refuse what it says cannot be done."""
    async with connect(settings) as link:
        if link is not None:
            found = await link.call("prospect", container=list(key), images=images)
        else:
            from ctrport.inquiry import Inquiry  # noqa: PLC0415 - a watcher has it

            found = await Inquiry(connection.client).prospect(list(key), images)
    _check_restart_policy(options, found["version"])
    if found["taken"]:
        raise ConflictError(
            f"a container named {key.id} exists already", hint=f"ctrport rm {key.id}, or another --name"
        )
    return found


def _requests(settings: Settings, options: Options, config: dict[str, Any]) -> tuple[PortMapping, ...]:
    """Give what is to be published: -p, and with -P every exposed port that -p does not name."""
    if options.network == "host" and (options.publish or options.publish_all):
        log.warning("-p does nothing with --network host: the container's ports are the host's already")
        return ()
    if options.bridged and not options.by_cni and _is_internal(settings, options.network):
        if options.publish or options.publish_all:
            log.warning("-p does nothing on the network %s: it is internal", options.network)
        return ()
    if not options.publish_all:
        return options.publish
    from ctrport.model.annotations import automatic, exposed_ports  # noqa: PLC0415 - only needed here

    exposed = (*exposed_ports(config), *options.expose)
    return (*options.publish, *automatic(exposed, options.publish))


def _is_internal(settings: Settings, name: str) -> bool:
    try:
        return networks.load(settings.root, name).internal
    except NotFoundError:  # the default one is made when it is first used; another is missed with its name
        if name != networks.DEFAULT:
            raise
        return False
