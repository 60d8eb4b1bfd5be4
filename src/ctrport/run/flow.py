"""The steps of `ctrport run`, each undone when a later one fails: a failed run leaves nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrport import lifecycle
from ctrport.control import writer
from ctrport.errors import ConflictError, CtrportError, HostError, InputError, NotFoundError
from ctrport.model.annotations import automatic, exposed_ports
from ctrport.model.listing import join
from ctrport.model.workload import Key
from ctrport.network import files, networks
from ctrport.run import names, process, translate, users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrport.config import Settings
    from ctrport.containerd.client import Client
    from ctrport.control import Writer
    from ctrport.model.ports import PortMapping
    from ctrport.run.options import Options

log = logging.getLogger(__name__)
HOSTNAME_LIMIT = 63  # characters of one label, RFC 1123; the kernel takes 64
NOTICE_PATIENCE = 2.0  # seconds for containerd to take note of an exit


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A container that runs, or has run: `exit_code` is known once it has been waited for."""

    name: str
    exit_code: int | None
    watched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a container goes: its network namespace and the files that belong to it."""

    netns: str | None = None
    hostname: str | None = None
    mounts: tuple[tuple[Path, str], ...] = ()


async def run(settings: Settings, client: Client, options: Options) -> Started:
    """Create and start a container with its ports; in the foreground, wait for its end."""
    check_host()
    check_sources(options)
    version = await client.version()  # and so fail before anything else when containerd is not there
    check_restart_policy(options, version)
    image = options.image if options.rootfs else await _image(settings, client, options)
    options = replace(options, publish=await _requests(settings, client, options, image))
    name = options.name or names.generated_name(options.image)
    key = Key(settings.namespace, names.check_identifier("the name", name))
    await _check_free(client, key)
    async with writer(settings, client) as link, AsyncExitStack() as undo:
        place = await _place(settings, client, link, options=options, key=key, undo=undo)
        where = files.directory(settings.root, key)
        output = where / "output.log" if options.detach and not options.tty else None
        command = translate.create(settings, options, name=name, image=image, netns=place.netns, files=place.mounts)
        await _create(client, key, command, undo)
        await _patch(client, key, options, place.hostname)
        pid_file = where / "pid"
        command = translate.start(settings, detach=options.detach, name=name, pid_file=pid_file, log=output)
        task = process.Task(command, client, key, pid_file)
        undo.push_async_callback(task.abandon)
        await task.start(detach=options.detach, interactive=options.interactive, tty=options.tty)
        if policy := translate.restart(settings, options, name=name, log=output):
            await process.run(policy, f"set the restart policy of {name}")
        result = await link.call("release", container=list(key))
        await _check_mapped(client, key, options, result)
        for text in result["trouble"] if link.watched else ():  # else our own pass has told it
            log.warning("%s", text)
        undo.pop_all()
    if options.detach:
        return Started(name=name, exit_code=None, watched=link.watched)
    code = await task.wait()
    await _after(settings, client, options, key)
    return Started(name=name, exit_code=code, watched=link.watched)


def check_host() -> None:
    """Refuse to begin what cannot be finished. HostError names what is missing."""
    if os.geteuid() != 0:
        raise HostError(
            "ctrport run makes namespaces and firewall rules: it must be root", hint="sudo ctrport run …"
        )
    if shutil.which("ctr") is None:
        raise HostError("the program ctr is not on the PATH", hint="apt-get install containerd")


def check_sources(options: Options) -> None:
    """Refuse to mount what is not there. Docker makes a directory, which hides a typing error."""
    for entry in options.mounts:
        fields = dict(field.partition("=")[::2] for field in entry.split(","))
        source = fields["src"]
        if fields["type"] == "bind" and not Path(source).exists():
            raise InputError(
                f"{source!a}, to be mounted on {fields['dst']!a}, is not there", hint=f"mkdir -p {source}"
            )


def check_restart_policy(options: Options, version: str) -> None:
    """Refuse a policy that this containerd would read as `always`: before 1.7 it knows no other."""
    major, _, rest = version.lstrip("v").partition(".")
    minor = rest.partition(".")[0]
    if options.restart.startswith("on-failure") and major == "1" and minor.isdecimal() and int(minor) < 7:  # noqa: PLR2004
        raise InputError(
            f"--restart {options.restart} needs containerd 1.7, this is {version}",
            hint="--restart always, or a newer containerd",
        )


async def _check_free(client: Client, key: Key) -> None:
    try:
        await client.container(key)
    except NotFoundError:
        return
    raise ConflictError(
        f"a container named {key.id} exists already", hint=f"ctrport rm {key.id}, or another --name"
    )


async def _image(settings: Settings, client: Client, options: Options) -> str:
    """Give the reference of an image that is here, pulled if need be."""
    reference = names.full_reference(options.image)
    if options.pull != "always":
        for candidate in dict.fromkeys((reference, options.image)):
            if await client.image_config(settings.namespace, candidate) is not None:
                return candidate
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
    return reference


async def _requests(settings: Settings, client: Client, options: Options, image: str) -> tuple[PortMapping, ...]:
    """Give what is to be published: -p, and with -P every exposed port that -p does not name."""
    if options.network == "host" and (options.publish or options.publish_all):
        log.warning("-p does nothing with --network host: the container's ports are the host's already")
        return ()
    if options.bridged and not options.by_cni and await asyncio.to_thread(_is_internal, settings, options.network):
        if options.publish or options.publish_all:
            log.warning("-p does nothing on the network %s: it is internal", options.network)
        return ()
    if not options.publish_all:
        return options.publish
    config = None if options.rootfs else await client.image_config(settings.namespace, image)
    exposed = (*exposed_ports(config or {}), *options.expose)
    return (*options.publish, *automatic(exposed, options.publish))


def _is_internal(settings: Settings, name: str) -> bool:
    try:
        return networks.load(settings.root, name).internal
    except NotFoundError:  # the default one is made when it is first used; another is missed with its name
        if name != networks.DEFAULT:
            raise
        return False


async def _place(
    settings: Settings, client: Client, link: Writer, *, options: Options, key: Key, undo: AsyncExitStack
) -> _Place:
    """Reserve address and ports, or find the network that is shared, and write the container's files."""
    reserved = await link.call(
        "reserve",
        container=list(key),
        publish=join(options.publish),
        network=options.network if options.bridged else None,
        ip=str(options.ip) if options.ip else None,
        labels=translate.labels(options),
    )
    undo.push_async_callback(_release, link, key)
    if options.network == "host":
        return _Place(hostname=options.hostname)
    if options.shared_with is not None:
        return await _shared(settings, client, Key(settings.namespace, options.shared_with), options)
    hostname = options.hostname or key.id[:HOSTNAME_LIMIT].rstrip("-._")
    netns = reserved["netns"]
    addresses = [ip_address(a) for a in (reserved["ipv4"], reserved["ipv6"]) if a]
    dns = options.dns or tuple(reserved["dns"])
    where = files.directory(settings.root, key)
    mounts = files.write(where, hostname=hostname, addresses=addresses, extra_hosts=options.add_host, dns=dns)
    return _Place(netns=netns, hostname=hostname, mounts=tuple(mounts))


async def _shared(settings: Settings, client: Client, other: Key, options: Options) -> _Place:
    """Give the namespace and files of a running container, for `--network container:ID`."""
    container = await client.container(other)
    task = await client.task(other)
    if task is None or not task.status.live:
        raise ConflictError(f"container {other.id} does not run: its network cannot be shared")
    where = files.directory(settings.root, other)
    mounts = tuple((where / name, f"/etc/{name}") for name in files.NAMES if (where / name).exists())
    netns = container.netns or f"/proc/{task.pid}/ns/net"
    return _Place(netns=netns, hostname=options.hostname, mounts=mounts)


async def _patch(client: Client, key: Key, options: Options, hostname: str | None) -> None:
    spec = await client.spec(key)
    user, entrypoint, size = None, (), None
    if options.user is not None:
        layers = [Path(options.image)] if options.rootfs else await client.root_directories(key)
        user = users.resolve(options.user, layers)
    if options.command and not options.rootfs:
        config = await client.image_config(key.namespace, (await client.container(key)).image) or {}
        entrypoint = (config.get("config") or {}).get("Entrypoint") or ()
    if options.tty and sys.stdout.isatty():
        size = os.get_terminal_size(sys.stdout.fileno())
    patched = translate.patched_spec(
        spec, options, hostname=hostname, user=user, image_entrypoint=entrypoint, size=size
    )
    if patched != spec:
        await client.set_spec(key, patched)


async def _create(client: Client, key: Key, command: Sequence[str], undo: AsyncExitStack) -> None:
    """Make the container, and see to its removal only if it is we who made it."""
    made = True
    try:
        await process.run(command, f"create container {key.id}")
    except process.RunError:
        made = False
        raise
    finally:
        if made:
            undo.push_async_callback(_remove_created, client, key)


async def _check_mapped(client: Client, key: Key, options: Options, result: dict[str, Any]) -> None:
    """Promise a port only once the kernel has it; a container that has ended already needs none."""
    lost = [
        f"container port {m['container_port']}: {m['reason']}" for m in result["mappings"] if m["state"] != "active"
    ]
    unseen = options.bridged and options.publish and not result["mappings"]
    # A process that is gone, with its network, still counts as running until containerd has taken note.
    if unseen and not await lifecycle.ends(client, key, within=NOTICE_PATIENCE):
        lost = ["the container runs, but its ports were not seen"]
    if lost:
        raise ConflictError("; ".join(lost[:5]), hint="ctrport rules --diff; journalctl -u ctrport")


async def _after(settings: Settings, client: Client, options: Options, key: Key) -> None:
    """Clean up after a foreground container; the watcher, where one runs, sees the exit by itself."""
    if options.remove:
        await lifecycle.remove(client, key, force=True)
    async with writer(settings, client) as link:
        if options.remove:
            await link.call("release", container=list(key))
        elif options.bridged:
            await link.call("converge", containers=[list(key)])


async def _remove_created(client: Client, key: Key) -> None:
    try:
        await lifecycle.remove(client, key, force=True)
    except CtrportError as error:
        log.warning("could not take back %s: %s", key, error.message)


async def _release(link: Writer, key: Key) -> None:
    try:
        await link.call("release", container=list(key))
    except CtrportError as error:
        log.warning("could not take back the network of %s: %s", key, error.message)
