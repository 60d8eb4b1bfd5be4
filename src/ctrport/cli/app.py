"""The commands and the global options.

Without `from __future__ import annotations`, as `run`: typer would evaluate the text of each annotation four times.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ctrport import __version__, defaults

# Where each command is, and what the list of commands says of it.
COMMANDS = {
    "run": ("run", "run", "Run a container with `ctr` and publish its ports."),
    "watch": ("maintenance", "watch", "Keep every published port in the kernel; in the foreground."),
    "sync": ("maintenance", "sync", "Make one full pass now."),
    "publish": ("publish", "publish", "Publish more ports of a container, all of them or none."),
    "unpublish": ("publish", "unpublish", "Withdraw published ports, whoever asked for them."),
    "port": ("containers", "port", "Print where a container's ports are published."),
    "ps": ("containers", "ps", "List containers with addresses and ports."),
    "rules": ("maintenance", "rules", "Print the nftables table that should be in the kernel."),
    "start": ("containers", "start", "Start stopped containers of `ctrport run` again."),
    "stop": ("containers", "stop", "Stop containers; addresses and files stay."),
    "rm": ("containers", "rm", "Remove containers, and all that was made for them."),
    "flush": ("maintenance", "flush", "Take every trace of ctrport out of the kernel."),
    "doctor": ("doctor", "doctor", "Say what stops published ports from working."),
    "network": ("networks", "app", "Make, list and remove networks."),
    "config": ("settings", "app", "Show the configuration in force, check a file."),
}
# How a command reads its words. Options of `run` end at the image: what follows belongs to the container's command.
WORDS = {"run": {"allow_interspersed_args": False}}


class _Loaded(Mapping[str, Any]):
    """Commands by name, each loaded and built when it is asked for: all together take 30 ms."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            module, member, _ = COMMANDS[name]
            found = getattr(importlib.import_module(f"ctrport.cli.{module}"), member)
            if not isinstance(found, typer.Typer):
                function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
                found.command(name, context_settings=WORDS.get(name))(function)
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

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's own loads every command
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])


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
    ] = defaults.ADDRESS,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", envvar="CONTAINERD_NAMESPACE", help="containerd's namespace.")
    ] = defaults.NAMESPACE,
    root: Annotated[
        Path,
        typer.Option(
            "--root", envvar="CTRPORT_ROOT", readable=False, help="Networks, leases and containers' files."
        ),
    ] = defaults.ROOT,
    state: Annotated[
        Path,
        typer.Option(
            # Not asked whether it is readable: doctor tells other users what they cannot see.
            "--state",
            envvar="CTRPORT_STATE",
            readable=False,
            help="Lock, control socket, what a reboot may forget.",
        ),
    ] = defaults.STATE,
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="CTRPORT_CONFIG", help=f"Settings.  [default: {defaults.CONFIG}]"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every ctr command and nft script, to be pasted.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Docker's published ports for plain containerd, kept in nftables maps."""
    from ctrport import config as configuration  # noqa: PLC0415 - the list of commands does without these
    from ctrport import log  # noqa: PLC0415
    from ctrport.errors import InputError  # noqa: PLC0415
    from ctrport.run.names import check_identifier  # noqa: PLC0415

    log.set_up(verbose=verbose, daemon=context.invoked_subcommand == "watch")
    path = config or defaults.CONFIG
    found, problem = None, None
    try:
        found = configuration.read(path, required=config is not None)
    except InputError as error:
        if context.invoked_subcommand not in WITHOUT_CONFIG:
            raise
        problem = error
    context.obj = configuration.Settings(
        address=os.path.realpath(address.removeprefix("unix://")),  # /var/run is /run: one name for one containerd
        namespace=check_identifier("--namespace", namespace),
        root=root.absolute(),
        state=state.absolute(),
        config=found or configuration.Config(),
        config_file=path.absolute(),
        config_found=found is not None,
        config_error=problem,
    )
