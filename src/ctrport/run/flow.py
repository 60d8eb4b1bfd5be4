"""The steps of `ctrport run`, each undone when a later one fails: a failed run leaves nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ctrport.control import writer
from ctrport.errors import ConflictError, CtrportError, NotFoundError
from ctrport.model.key import Key
from ctrport.model.listing import join
from ctrport.network import files
from ctrport.run import names, prepare, process, task, translate
from ctrport.run.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrport.config import Settings
    from ctrport.connection import Connection
    from ctrport.containerd.client import Client
    from ctrport.control import Writer
    from ctrport.model.workload import Container
    from ctrport.run.interruption import Interruption
    from ctrport.run.options import Options

log = logging.getLogger(__name__)
HOSTNAME_LIMIT = 63  # characters of one label, RFC 1123; the kernel takes 64


class Started(NamedTuple):
    """A container that runs, or has run: `exit_code` is known once it has been waited for."""

    name: str
    exit_code: int | None
    watched: bool


class _Place(NamedTuple):
    """Where a container goes: its network namespace and the files that belong to it, which ctr does not look at."""

    netns: str | None = None
    hostname: str | None = None
    mounts: tuple[tuple[Path, str], ...] = ()


async def run(settings: Settings, connection: Connection, options: Options, interruption: Interruption) -> Started:
    """Create and start a container with its ports; in the foreground, wait for its end."""
    name = options.name or names.generated_name(options.image)
    key = Key(settings.namespace, names.check_identifier("the name", name))
    options, image, config = await prepare.prepare(settings, connection, options, key)
    async with writer(settings, connection) as link, AsyncExitStack() as undo:
        place = await _reserve(settings, connection, link, options=options, key=key, undo=undo)
        where = files.directory(settings.root, key)
        command = translate.create(settings, options, name=name, image=image, netns=place.netns, files=place.mounts)
        # Side by side, and each to its end: neither needs the other before the task starts.
        ends = await asyncio.gather(
            _connect(settings, link, options, key, place),
            _create(connection, key, command, undo),
            return_exceptions=True,
        )
        for failure in filter(None, ends):
            raise failure
        await _patch(link, key, options, hostname=place.hostname, config=config)
        attended = made = None
        if options.detach:
            await task.start_detached(link, key, where, terminal=options.tty)
        else:
            streams = Streams(where, interactive=options.interactive, terminal=options.tty)
            attended = task.Attended(connection, key, streams, interruption)
            undo.callback(attended.leave)
            made = await connection.client.container(key) if options.remove else None
            await attended.start(link)
        if policy := translate.restart(settings, options, name=name, log=task.log_of(where)):
            await process.run(policy, f"set the restart policy of {name}")
        result = await link.call("release", container=list(key), started=True)
        await _check_mapped(link, key, options, result)
        for text in result["trouble"] if link.watched else ():  # else our own pass has told it
            log.warning("%s", text)
        undo.pop_all()
    if attended is None:
        return Started(name=name, exit_code=None, watched=link.watched)
    try:
        code = await attended.wait()
    except asyncio.CancelledError:  # the container has ended, and somebody does not read what it wrote
        await _after(settings, connection, options, key, made)
        raise
    await _after(settings, connection, options, key, made)
    return Started(name=name, exit_code=code, watched=link.watched)


async def _reserve(
    settings: Settings, connection: Connection, link: Writer, *, options: Options, key: Key, undo: AsyncExitStack
) -> _Place:
    """Reserve the name, and give the place: a namespace and files that are still to be made, or another's."""
    network = options.network if options.bridged else None
    # First: an interruption may come when the name is ours already.
    undo.push_async_callback(_release, settings, link, key)
    labels = translate.labels(options)
    reserved = await link.call("reserve", container=list(key), network=network, labels=labels)
    if options.network == "host":
        return _Place(hostname=options.hostname)
    if options.shared_with is not None:
        return await _shared(settings, connection.client, Key(settings.namespace, options.shared_with), options)
    hostname = options.hostname or key.id[:HOSTNAME_LIMIT].rstrip("-._")
    where = files.directory(settings.root, key)
    mounts = tuple((where / name, f"/etc/{name}") for name in files.NAMES)
    return _Place(netns=reserved["netns"] if options.bridged else None, hostname=hostname, mounts=mounts)


async def _connect(settings: Settings, link: Writer, options: Options, key: Key, place: _Place) -> None:
    """Get the address and the ports, and write the files that tell the container of them."""
    if options.network == "host" or options.shared_with is not None:
        return
    addresses, dns = [], options.dns
    if options.bridged:
        given = await link.call(
            "connect",
            container=list(key),
            publish=join(options.publish),
            network=options.network,
            ip=str(options.ip) if options.ip else None,
        )
        addresses = [ip_address(a) for a in (given["ipv4"], given["ipv6"]) if a]
        dns = dns or tuple(given["dns"])
    where = files.directory(settings.root, key)
    files.write(where, hostname=place.hostname or "", addresses=addresses, extra_hosts=options.add_host, dns=dns)


async def _shared(settings: Settings, client: Client, other: Key, options: Options) -> _Place:
    """Give the namespace and files of a running container, for `--network container:ID`."""
    container = await client.container(other)
    found = await client.task(other)
    if found is None or not found.status.live:
        raise ConflictError(f"container {other.id} does not run: its network cannot be shared")
    where = files.directory(settings.root, other)
    mounts = tuple((where / name, f"/etc/{name}") for name in files.NAMES if (where / name).exists())
    netns = container.netns or f"/proc/{found.pid}/ns/net"
    return _Place(netns=netns, hostname=options.hostname, mounts=mounts)


async def _patch(link: Writer, key: Key, options: Options, *, hostname: str | None, config: dict[str, Any]) -> None:
    from_image = options.user is not None and not options.rootfs
    found = await link.call("spec", container=list(key), roots=from_image)
    user, entrypoint, size = None, (), None
    if options.user is not None:
        from ctrport.run import users  # noqa: PLC0415 - only needed here

        roots = found["roots"] if from_image else [options.image]
        user = users.resolve(options.user, [Path(root) for root in roots])
    if options.command:
        entrypoint = (config.get("config") or {}).get("Entrypoint") or ()
    if options.tty and sys.stdout.isatty():
        size = os.get_terminal_size(sys.stdout.fileno())
    patched = translate.patched_spec(
        found["spec"], options, hostname=hostname, user=user, image_entrypoint=entrypoint, size=size
    )
    if patched != found["spec"]:
        await link.call("set_spec", container=list(key), spec=patched)


async def _create(connection: Connection, key: Key, command: Sequence[str], undo: AsyncExitStack) -> None:
    """Make the container, and see to its removal only if it is we who made it."""
    made = True
    try:
        await process.run(command, f"create container {key.id}")
    except process.RunError:
        made = False
        raise
    finally:
        if made:
            undo.push_async_callback(_remove_created, connection, key)


async def _check_mapped(link: Writer, key: Key, options: Options, result: dict[str, Any]) -> None:
    """Promise a port only once the kernel has it; a container that has ended already needs none."""
    lost = [f"container port {m['container_port']}: {m['reason']}" for m in result["lost"]]
    unseen = options.bridged and options.publish and not result["requests"]
    if unseen and (await link.call("runs", container=list(key)))["runs"]:
        lost = ["the container runs, but its ports were not seen"]
    if lost:
        raise ConflictError("; ".join(lost[:5]), hint="ctrport rules --diff; journalctl -u ctrport")


async def _after(
    settings: Settings, connection: Connection, options: Options, key: Key, made: Container | None
) -> None:
    """Clean up after a foreground container, `made` if it is to be removed; a watcher sees the exit by itself.

    What goes wrong is told: the exit code is the container's.
    """
    from ctrport import lifecycle  # noqa: PLC0415 - a detached run has no need of it

    try:
        if made is not None:
            with suppress(NotFoundError):
                there = await connection.client.container(key)
                if there.created_at == made.created_at:  # else another has the name by now
                    await lifecycle.remove(connection.client, key, force=True)
        elif not options.bridged:
            return
        async with writer(settings, connection) as link:
            if made is not None:
                await link.call("release", container=list(key))
            else:
                await link.call("converge", containers=[list(key)])
    except (CtrportError, OSError) as error:
        log.warning("could not clean up after %s: %s", key, error)


async def _remove_created(connection: Connection, key: Key) -> None:
    from ctrport import lifecycle  # noqa: PLC0415 - only what went wrong is taken back

    try:
        await lifecycle.remove(connection.client, key, force=True)
    except CtrportError as error:
        log.warning("could not take back %s: %s", key, error.message)


async def _release(settings: Settings, link: Writer, key: Key) -> None:
    try:
        await link.call("release", container=list(key))
    except CtrportError as error:
        from ctrport.network import leases  # noqa: PLC0415 - most runs go well

        log.warning("could not take back the network of %s: %s", key, error.message)
        # A full pass finds a lease, and by the directory what belongs to it; neither finds a mere name.
        if leases.of_container(settings.root, key) is None:
            with suppress(OSError):
                files.directory(settings.root, key).rmdir()
