"""config show, config check: what config.toml says, and whether it can be taken."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctrport.cli.maintenance import FormatOption
from ctrport.cli.output import Format, print_json, print_lines, warn
from ctrport.config import Settings, read

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Show the configuration in force, check a configuration file.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("show")
def show(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """Print the configuration in force with all defaults: the watcher's, or the file's where no watcher runs."""
    import asyncio  # noqa: PLC0415 - commands that do not need it should start without it

    from ctrport.config import render  # noqa: PLC0415
    from ctrport.observe import configuration  # noqa: PLC0415

    settings: Settings = context.obj
    watcher = asyncio.run(configuration(settings))
    if watcher is None and settings.config_error is not None:
        raise settings.config_error
    values = watcher["configuration"] if watcher else render.plain(settings.config)
    path = watcher["file"] if watcher else str(settings.config_file)
    error = watcher["error"] if watcher else None
    waiting = watcher["waiting"] if watcher else []
    if error is None and settings.config_error is not None:
        error = settings.config_error.message
    if format_ is Format.JSON:
        fields = {"watched": watcher is not None, "file": path, "error": error, "waiting": waiting}
        print_json(**fields, configuration=values)
    else:
        source = "in force in the watcher" if watcher else "no watcher runs"
        print_lines([f"# {path} and defaults, {source}", *render.toml(values).splitlines()])
    if error:
        warn(f"the watcher keeps the configuration that it had: {error}")
    elif waiting:
        warn(f"a change of {' and '.join(waiting)} waits for a restart: systemctl restart ctrport")
    elif watcher and values != render.plain(settings.config):
        warn(
            f"{settings.config_file} says something else, which the watcher has not read: systemctl reload ctrport"
        )


@app.command("check")
def check(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="By default, the one that would be used.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Say whether a configuration file can be taken; exit 2 if not, with line and key."""
    settings: Settings = context.obj
    if file is None and settings.config_error is not None:
        raise settings.config_error
    path = settings.config_file if file is None else file
    found = settings.config_found if file is None else read(file, required=True) is not None
    if format_ is Format.JSON:
        print_json(file=str(path), found=found)
    else:
        print_lines([f"{path}: good" if found else f"{path}: there is none, all is by default"])
