"""The commands and the global options."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ctrport import __version__, log
from ctrport import config as configuration
from ctrport.config import Config, Settings
from ctrport.errors import InputError
from ctrport.run.names import check_identifier

# Where each command is, and how it reads its words. Options of `run` end at the image: what follows belongs to the
# container's command.
COMMANDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "run": ("run", "run", {"allow_interspersed_args": False}),
    "watch": ("maintenance", "watch", {}),
    "sync": ("maintenance", "sync", {}),
    "publish": ("publish", "publish", {}),
    "unpublish": ("publish", "unpublish", {}),
    "port": ("containers", "port", {}),
    "ps": ("containers", "ps", {}),
    "rules": ("maintenance", "rules", {}),
    "start": ("containers", "start", {}),
    "stop": ("containers", "stop", {}),
    "rm": ("containers", "rm", {}),
    "flush": ("maintenance", "flush", {}),
    "doctor": ("doctor", "doctor", {}),
    "network": ("networks", "app", {}),
    "config": ("settings", "app", {}),
}


class _Loaded(Mapping[str, Any]):
    """Commands by name, each loaded and built when it is asked for: all together take 20 ms."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            module, member, words = COMMANDS[name]
            found = getattr(importlib.import_module(f"ctrport.cli.{module}"), member)
            if not isinstance(found, typer.Typer):
                function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
                found.command(name, context_settings=words)(function)
            self._built[name] = typer.main.get_command(found)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Mapping[str, Any] = _Loaded()  # type: ignore[assignment]  # nobody adds to it


app = typer.Typer(
    name="ctrport",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Commands that go on with a bad config.toml: they show what the watcher does with the good one that it has.
WITHOUT_CONFIG = ("config", "doctor", "port", "ps")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ctrport {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    address: Annotated[
        str, typer.Option("--address", "-a", envvar="CONTAINERD_ADDRESS", help="containerd's socket.")
    ] = configuration.DEFAULT_ADDRESS,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", envvar="CONTAINERD_NAMESPACE", help="containerd's namespace.")
    ] = configuration.DEFAULT_NAMESPACE,
    root: Annotated[
        Path,
        typer.Option(
            "--root", envvar="CTRPORT_ROOT", readable=False, help="Networks, leases and containers' files."
        ),
    ] = configuration.DEFAULT_ROOT,
    state: Annotated[
        Path,
        typer.Option(
            # Not asked whether it is readable: doctor tells other users what they cannot see.
            "--state",
            envvar="CTRPORT_STATE",
            readable=False,
            help="Lock, control socket, what a reboot may forget.",
        ),
    ] = configuration.DEFAULT_STATE,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", envvar="CTRPORT_CONFIG", help=f"Settings.  [default: {configuration.DEFAULT_CONFIG}]"
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every ctr command and nft script, to be pasted.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Docker's published ports for plain containerd, kept in nftables maps."""
    log.set_up(verbose=verbose, daemon=context.invoked_subcommand == "watch")
    path = config or configuration.DEFAULT_CONFIG
    found, problem = None, None
    try:
        found = configuration.read(path, required=config is not None)
    except InputError as error:
        if context.invoked_subcommand not in WITHOUT_CONFIG:
            raise
        problem = error
    context.obj = Settings(
        address=os.path.realpath(address.removeprefix("unix://")),  # /var/run is /run: one name for one containerd
        namespace=check_identifier("--namespace", namespace),
        root=root.absolute(),
        state=state.absolute(),
        config=found or Config(),
        config_file=path.absolute(),
        config_found=found is not None,
        config_error=problem,
    )
