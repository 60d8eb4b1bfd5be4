"""The commands and the global options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ctrport import __version__, log
from ctrport import config as configuration
from ctrport.cli import containers, doctor, maintenance, networks, publish, run, settings
from ctrport.config import Config, Settings
from ctrport.errors import InputError
from ctrport.run.names import check_identifier

app = typer.Typer(
    name="ctrport",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Options of `run` end at the image: what follows belongs to the container's command.
app.command("run", context_settings={"allow_interspersed_args": False})(run.run)
app.command("watch")(maintenance.watch)
app.command("sync")(maintenance.sync)
app.command("publish")(publish.publish)
app.command("unpublish")(publish.unpublish)
app.command("port")(containers.port)
app.command("ps")(containers.ps)
app.command("rules")(maintenance.rules)
app.command("start")(containers.start)
app.command("stop")(containers.stop)
app.command("rm")(containers.rm)
app.add_typer(networks.app, name="network")
app.add_typer(settings.app, name="config")
app.command("flush")(maintenance.flush)
app.command("doctor")(doctor.doctor)

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
