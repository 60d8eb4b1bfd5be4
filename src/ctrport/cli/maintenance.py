"""watch, sync, rules, flush: the rules as such."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ctrport.cli.output import Format, print_json, print_lines, warn
from ctrport.config import Settings

FormatOption = Annotated[Format, typer.Option("--format", help="table or json.")]
UNWATCHED = "no watcher runs: this is not kept up when containers or firewalls change (systemctl start ctrport)"


def watch(context: typer.Context) -> None:
    """Watch containerd and keep every published port in the kernel; runs in the foreground."""
    import asyncio  # noqa: PLC0415 - commands that do not need it should start without it

    from ctrport.watch import run  # noqa: PLC0415

    asyncio.run(run(context.obj))


def sync(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """Make one full pass now, through the watcher where one runs; exit 1 if this host does not let it be whole."""
    import asyncio  # noqa: PLC0415

    from ctrport.connection import Connection  # noqa: PLC0415
    from ctrport.control import writer  # noqa: PLC0415

    settings: Settings = context.obj

    async def work() -> tuple[bool, dict[str, Any]]:
        async with (
            Connection(settings) as connection,
            writer(settings, connection) as link,
        ):
            return link.watched, await link.call("resync")

    watched, result = asyncio.run(work())
    if format_ is Format.JSON:
        print_json(watched=watched, **result)
    else:
        print_lines([f"{'not ' if result['trouble'] else ''}in sync: {result['changes']} changes"])
    if not watched:
        warn(UNWATCHED)
    for text in result["trouble"] if watched else ():  # else our own pass has told it
        warn(text)
    if result["trouble"]:
        raise typer.Exit(1)


def rules(
    context: typer.Context,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show only how the kernel differs; exit 1 if it does.")
    ] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Print the nftables table that should be in the kernel."""
    import asyncio  # noqa: PLC0415

    from ctrport.containerd.client import Client  # noqa: PLC0415
    from ctrport.observe import tables  # noqa: PLC0415

    settings: Settings = context.obj

    async def work() -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        async with Client(settings.address, timeout=settings.config.timeout_seconds) as client:
            table, drift = await tables(settings, client)
            return table.declaration(), drift.missing, drift.surplus

    script, missing, surplus = asyncio.run(work())
    if format_ is Format.JSON:
        print_json(**({"missing": missing, "surplus": surplus} if diff else {"script": script}))
    elif diff:
        print_lines([*(f"- {line}" for line in missing), *(f"+ {line}" for line in surplus)])
    else:
        print_lines([script.rstrip("\n")])
    if diff and (missing or surplus):
        raise typer.Exit(1)


def flush(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """Take every trace of ctrport out of the kernel: rules, bridges, settings."""
    from ctrport.flush import flush as flush_kernel  # noqa: PLC0415

    removed = flush_kernel(context.obj)
    if format_ is Format.JSON:
        print_json(removed=removed)
    else:
        print_lines(removed or ["nothing of ctrport was there"])
