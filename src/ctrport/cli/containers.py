"""port, ps, start, stop, rm: containers and their ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrport.cli.maintenance import UNWATCHED, FormatOption
from ctrport.cli.output import Format, note, print_json, print_lines, print_table, warn
from ctrport.errors import NotFoundError
from ctrport.model.key import Key
from ctrport.model.ports import parse_port_argument
from ctrport.run.names import check_identifier

if TYPE_CHECKING:
    from ctrport.config import Settings
    from ctrport.connection import Connection
    from ctrport.containerd.client import Client
    from ctrport.control import Writer
    from ctrport.model.workload import Container

Names = Annotated[list[str], typer.Argument(metavar="CONTAINER...")]


def port(
    context: typer.Context,
    container: Annotated[str, typer.Argument(help="A pod: NAMESPACE/NAME.")],
    which: Annotated[str | None, typer.Argument(metavar="[PORT[/PROTO]]")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Print where a container's ports are published, as `docker port`."""
    import asyncio  # noqa: PLC0415

    from ctrport.model.listing import port_lines  # noqa: PLC0415

    wanted = parse_port_argument(which) if which else None
    settings: Settings = context.obj
    entry = asyncio.run(_entry(settings, container))
    shown = port_lines(published(entry), *(wanted or ()))
    if wanted and not shown:
        number, protocol = wanted
        raise NotFoundError(f"no public port '{number}/{protocol}' published for {container}")
    if format_ is Format.JSON:
        active = [m for m in entry["mappings"] if m["state"] == "active"]
        if wanted:
            active = [m for m in active if (m["container_port"], m["protocol"]) == wanted]
        print_json(mappings=[{k: v for k, v in m.items() if k not in ("state", "reason")} for m in active])
    else:
        print_lines(shown)


def ps(
    context: typer.Context,
    all_: Annotated[bool, typer.Option("--all", "-a", help="Stopped containers too.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """List containers with addresses and ports; for a port that is refused, why."""
    import asyncio  # noqa: PLC0415

    from ctrport.model.listing import ports_column  # noqa: PLC0415

    settings: Settings = context.obj
    entries, watcher = asyncio.run(_entries(settings, stopped=all_))
    # The ports shown are not by what config.toml says now.
    if error := watcher.get("error") or (settings.config_error and settings.config_error.message):
        warn(f"the watcher keeps the configuration that it had: {error}")
    if format_ is Format.JSON:
        print_json(containers=entries)
        return
    rows = []
    for entry in entries:
        ports = [ports_column(published(entry))] if published(entry) else []
        ports += [f"{_asked(m)}: {m['state']}, {m['reason']}" for m in entry["mappings"] if m["state"] != "active"]
        rows.append(
            (
                entry["name"],
                entry["image"],
                entry["status"],
                "\n".join(entry["addresses"]),
                "\n".join([*ports, *(f"refused: {problem}" for problem in entry["problems"])]),
            )
        )
    print_table(("CONTAINER", "IMAGE", "STATUS", "ADDRESS", "PORTS"), rows)


def start(context: typer.Context, containers: Names) -> None:
    """Start stopped containers of `ctrport run` again, with the addresses and ports that they had."""
    from ctrport.run.start import start as start_container  # noqa: PLC0415

    settings: Settings = context.obj
    unwatched: list[Key] = []

    async def work(client: Client, link: Writer, record: Container) -> None:
        key = record.key
        if not await start_container(settings, client, link, key):
            note(f"{key.id} runs already")
        elif not link.watched:
            unwatched.append(key)

    try:
        _each(settings, containers, work)
    finally:
        if unwatched:
            warn(UNWATCHED)


def stop(
    context: typer.Context,
    containers: Names,
    timeout: Annotated[float, typer.Option("--time", "-t", help="Seconds from the stop signal to SIGKILL.")] = 10.0,
) -> None:
    """Stop containers; their ports stop answering, addresses and files stay."""
    from ctrport import lifecycle  # noqa: PLC0415
    from ctrport.model.annotations import is_auto_remove  # noqa: PLC0415

    async def work(client: Client, link: Writer, record: Container) -> None:
        key = record.key
        await lifecycle.stop(client, record, patience=timeout)
        if is_auto_remove(record):
            await lifecycle.remove(client, key, force=True)
            await link.call("release", container=list(key))
        else:
            await link.call("converge", containers=[list(key)])

    _each(context.obj, containers, work)


def rm(
    context: typer.Context,
    containers: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill a running container first.")] = False,
) -> None:
    """Remove containers, and give back their addresses, namespaces and files."""
    from ctrport import lifecycle  # noqa: PLC0415

    async def work(client: Client, link: Writer, record: Container) -> None:
        await lifecycle.remove(client, record.key, force=force)
        await link.call("release", container=list(record.key))

    _each(context.obj, containers, work)


def _each(settings: Settings, containers: list[str], work: Any) -> None:
    """Do one thing to several containers; the failures are told together, after the others are done."""
    import asyncio  # noqa: PLC0415

    from ctrport.cli.output import print_error  # noqa: PLC0415
    from ctrport.connection import Connection  # noqa: PLC0415
    from ctrport.control import writer  # noqa: PLC0415
    from ctrport.errors import CtrportError  # noqa: PLC0415
    from ctrport.lifecycle import check_owner  # noqa: PLC0415

    async def everyone() -> bool:
        failed = False
        async with (
            Connection(settings) as connection,
            writer(settings, connection) as link,
        ):
            for name in containers:
                try:
                    client = connection.client
                    record = await client.container(await find(settings, connection, name))
                    check_owner(record)
                    await work(client, link, record)
                    print_lines([name])
                except CtrportError as error:
                    failed = True
                    print_error(error)
        return failed

    if asyncio.run(everyone()):
        raise typer.Exit(1)


async def _entry(settings: Settings, name: str) -> dict[str, Any]:
    from ctrport.connection import Connection  # noqa: PLC0415
    from ctrport.control import connect  # noqa: PLC0415

    async with Connection(settings) as connection, connect(settings) as link:
        key = await find(settings, connection, name)
        if link is not None:
            await link.call("check", container=list(key))
            (entry,) = (await link.call("bindings", container=list(key)))["containers"]
            return dict(entry)
        from ctrport.observe import bindings  # noqa: PLC0415 - a watcher has it

        await connection.client.container(key)  # or say that there is none
        for entry in await bindings(settings, connection.client):
            if Key(entry["namespace"], entry["id"]) == key:
                return entry
    return {"addresses": [], "mappings": []}


async def _entries(settings: Settings, *, stopped: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Give every container of the namespace in the shape of `ps --format json`, oldest first.

    With it the configuration that the watcher has, nothing of it where none runs.
    """
    from ctrport.connection import Connection  # noqa: PLC0415
    from ctrport.control import connect  # noqa: PLC0415

    watcher: dict[str, Any] = {}
    async with Connection(settings) as connection, connect(settings) as link:
        if link is not None:
            published = (await link.call("bindings"))["containers"]
            listed = await link.call("containers", namespace=settings.namespace)
            watcher = await link.call("configuration")
        else:
            from ctrport.inquiry import Inquiry  # noqa: PLC0415 - a watcher has both
            from ctrport.observe import bindings  # noqa: PLC0415

            published = await bindings(settings, connection.client)
            listed = await Inquiry(connection.client).containers(settings.namespace)
    found = {(entry["namespace"], entry["id"]): entry for entry in published}
    entries = []
    for container in listed["containers"]:
        if container.pop("live") or stopped:
            known = found.get((container["namespace"], container["id"]), {})
            container |= {name: known.get(name, []) for name in ("addresses", "mappings", "problems")}
            entries.append(container)
    return entries, watcher


def published(entry: dict[str, Any]) -> list[Any]:
    """Give what is served, one a family, as `docker port` shows it."""
    from ipaddress import ip_address  # noqa: PLC0415

    from ctrport.model.listing import Published  # noqa: PLC0415
    from ctrport.model.ports import Protocol  # noqa: PLC0415

    families = {ip_address(a).version for a in entry["addresses"]}
    wildcards = [ip_address(text) for family, text in ((4, "0.0.0.0"), (6, "::")) if family in families]  # noqa: S104
    return [
        Published(address, m["host_port"], m["container_port"], Protocol(m["protocol"]))
        for m in entry["mappings"]
        if m["state"] == "active"
        for address in ([ip_address(m["host_ip"])] if m["host_ip"] else wildcards)
    ]


def _asked(mapping: dict[str, Any]) -> str:
    pool = mapping["host_port_pool"]
    host = mapping["host_port"] or ("-".join(map(str, pool)) if pool else "")
    where = f"{mapping['host_ip']}:{host}" if mapping["host_ip"] else f"{host}"
    return f"{where}->{mapping['container_port']}/{mapping['protocol']}"


async def find(settings: Settings, connection: Connection, name: str) -> Key:
    """Give the container of a name: a pod's pause container by NAMESPACE/NAME, or NotFoundError."""
    if "/" in name:  # in no container's id, and in every pod's name
        return (await connection.client.pod(name)).key
    return key_of(settings, name)


def key_of(settings: Settings, name: str) -> Key:
    """Give the container of a name in the namespace in use."""
    return Key(settings.namespace, check_identifier("the container", name))
