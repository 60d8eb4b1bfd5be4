"""publish, unpublish: a running container's ports, changed without a restart."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ctrport.cli.containers import find, published
from ctrport.cli.maintenance import UNWATCHED, FormatOption
from ctrport.cli.output import Format, print_json, print_lines, warn
from ctrport.config import Settings
from ctrport.errors import InputError
from ctrport.model import ports
from ctrport.model.listing import join, port_lines

ContainerArgument = Annotated[str, typer.Argument(metavar="CONTAINER", help="A pod: NAMESPACE/NAME.")]


def publish(
    context: typer.Context,
    container: ContainerArgument,
    specs: Annotated[list[str], typer.Argument(metavar="[[IP:][HOST]:]CONTAINER[/PROTO]...")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Publish more ports of a container, all of them or none; prints where, as `port`."""
    watched, result = _ask(context.obj, "publish", container, _specs(specs))
    if format_ is Format.JSON:
        print_json(watched=watched, running=result["running"], mappings=result["mappings"])
    else:
        print_lines(port_lines(published(result)))
    if not result["running"]:
        warn(f"{container} does not run: its ports are published when it starts")
    if not watched:
        warn(UNWATCHED)


def unpublish(
    context: typer.Context,
    container: ContainerArgument,
    specs: Annotated[list[str] | None, typer.Argument(metavar="[SPEC...]")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every port that the container publishes.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Withdraw published ports, whoever asked for them; prints what was withdrawn."""
    if bool(specs) == all_:
        raise InputError("name the ports, or say --all", hint=f"ctrport port {container}")
    watched, result = _ask(context.obj, "unpublish", container, None if all_ else _specs(specs or []))
    if format_ is Format.JSON:
        print_json(watched=watched, removed=result["removed"], mappings=result["mappings"])
    else:
        print_lines(result["removed"])
    if not watched:
        warn(UNWATCHED)


def _specs(specs: list[str]) -> str:
    """Read specs before anything is asked of anybody; gives them in short."""
    mappings = dict.fromkeys(mapping for spec in specs for mapping in ports.parse(spec))
    ports.reject_duplicates(mappings)
    return join(mappings)


def _ask(settings: Settings, operation: str, container: str, specs: str | None) -> tuple[bool, dict[str, Any]]:
    import asyncio  # noqa: PLC0415 - --help should start without it

    from ctrport.connection import Connection  # noqa: PLC0415
    from ctrport.control import writer  # noqa: PLC0415

    async def work() -> tuple[bool, dict[str, Any]]:
        async with (
            Connection(settings) as connection,
            writer(settings, connection) as link,
        ):
            key = await find(settings, connection, container)
            return link.watched, await link.call(operation, container=list(key), specs=specs)

    return asyncio.run(work())
