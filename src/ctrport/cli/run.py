"""run: the options of `docker run` that a containerd host has a use for.

Without `from __future__ import annotations`: typer would evaluate the text of each annotation four times.
"""

import sys
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Annotated

import typer

from ctrport.cli.output import print_error, print_lines, warn
from ctrport.config import Settings
from ctrport.errors import ConflictError, CtrportError, HostError, InputError
from ctrport.model import ports
from ctrport.run import options as opts
from ctrport.run.options import Options

RUN_FAILED = 125  # Docker's exit code when not the container but its run failed
Texts = list[str] | None


def run(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="Image reference; with --rootfs a directory.")],
    command: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND [ARG...]]")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running, print its name.")] = False,
    remove: Annotated[bool, typer.Option("--rm", help="Remove the container when it has ended.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass standard input on.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Container id; else one is made up.")] = None,
    publish: Annotated[
        Texts,
        typer.Option("--publish", "-p", metavar="[[IP:][HOST]:]CONTAINER[/PROTO]", help="Publish a port."),
    ] = None,
    publish_all: Annotated[
        bool,
        typer.Option("--publish-all", "-P", help="Publish every exposed port on a port of the host's choice."),
    ] = False,
    expose: Annotated[Texts, typer.Option("--expose", metavar="PORT[/PROTO]", help="Expose a port to -P.")] = None,
    env: Annotated[Texts, typer.Option("--env", "-e", metavar="KEY[=VALUE]")] = None,
    env_file: Annotated[list[Path] | None, typer.Option("--env-file")] = None,
    volume: Annotated[Texts, typer.Option("--volume", "-v", metavar="SOURCE:TARGET[:ro]")] = None,
    mount: Annotated[Texts, typer.Option("--mount", metavar="type=bind,source=…,target=…[,readonly]")] = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", metavar="USER[:GROUP]")] = None,
    entrypoint: Annotated[str | None, typer.Option("--entrypoint", help="Replace the image's entry point.")] = None,
    network: Annotated[
        str,
        typer.Option("--network", metavar="NAME|cni[:NAME]|host|none|container:ID", help="What to connect it to."),
    ] = "default",
    ip: Annotated[str | None, typer.Option("--ip", help="IPv4 address on the network.")] = None,
    hostname: Annotated[str | None, typer.Option("--hostname")] = None,
    dns: Annotated[Texts, typer.Option("--dns", metavar="ADDRESS")] = None,
    add_host: Annotated[Texts, typer.Option("--add-host", metavar="NAME:ADDRESS")] = None,
    restart: Annotated[
        str, typer.Option("--restart", metavar="POLICY", help="no, always, unless-stopped, on-failure[:N].")
    ] = "no",
    label: Annotated[Texts, typer.Option("--label", "-l", metavar="KEY=VALUE")] = None,
    annotation: Annotated[Texts, typer.Option("--annotation", metavar="KEY=VALUE")] = None,
    cpus: Annotated[float | None, typer.Option("--cpus")] = None,
    memory: Annotated[str | None, typer.Option("--memory", "-m", metavar="SIZE")] = None,
    privileged: Annotated[bool, typer.Option("--privileged")] = False,
    cap_add: Annotated[Texts, typer.Option("--cap-add", metavar="CAPABILITY")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Root filesystem without writing.")] = False,
    pull: Annotated[str, typer.Option("--pull", metavar="missing|always|never")] = "missing",
    rootfs: Annotated[bool, typer.Option("--rootfs", help="IMAGE is the directory of a root filesystem.")] = False,
    ctr_arg: Annotated[
        Texts, typer.Option("--ctr-arg", metavar="ARG", help="Passed to `ctr containers create` as it is.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the ctr commands and the nft script, touch nothing.")
    ] = False,
) -> None:
    """Run a container with `ctr`, on a network of its own, with published ports."""
    wanted = Options(
        image=str(Path(image).absolute()) if rootfs else image,
        command=tuple(command or ()),
        name=name,
        publish=_publish(publish or []),
        publish_all=publish_all,
        expose=tuple(ports.parse_port_argument(text) for text in expose or ()),
        detach=detach,
        remove=remove,
        interactive=interactive,
        tty=tty,
        env=opts.environment(env or (), env_file or ()),
        mounts=(*map(opts.volume, volume or ()), *map(opts.mount, mount or ())),
        workdir=workdir,
        user=user,
        entrypoint=entrypoint,
        network=network,
        ip=_ipv4(ip),
        hostname=hostname,
        dns=tuple(map(opts.server_address, dns or ())),
        add_host=tuple(map(opts.host_entry, add_host or ())),
        restart=restart,
        labels=tuple(opts.key_value("--label", text) for text in label or ()),
        annotations=tuple(opts.key_value("--annotation", text) for text in annotation or ()),
        cpus=cpus,
        memory=opts.memory(memory) if memory else None,
        privileged=privileged,
        cap_add=tuple(cap_add or ()),
        read_only=read_only,
        pull=pull,
        rootfs=rootfs,
        ctr_args=tuple(ctr_arg or ()),
    )
    wanted.check()
    if interactive and tty and not detach and not dry_run and not sys.stdin.isatty():
        raise InputError("-i -t: standard input is not a terminal", hint="leave out -t")
    if dry_run:
        _dry_run(context.obj, wanted)
        return
    try:
        code = _run(context.obj, wanted)
    except InputError:
        raise
    except OSError as error:
        print_error(HostError(str(error), hint="look at --root and --state: ctrport --help"))
        code = RUN_FAILED
    except CtrportError as error:
        print_error(error)
        code = max(RUN_FAILED, error.exit_code)
    raise typer.Exit(code)


def _dry_run(settings: Settings, wanted: Options) -> None:
    from ctrport.run.dry_run import script  # noqa: PLC0415 - only needed here

    try:
        print_lines([script(settings, wanted).rstrip("\n")])
    except ConflictError as error:
        print_error(error)
        raise typer.Exit(RUN_FAILED) from None


def _run(settings: Settings, wanted: Options) -> int:
    import asyncio  # noqa: PLC0415 - --help and --dry-run should start without it
    import signal  # noqa: PLC0415

    from ctrport.connection import Connection  # noqa: PLC0415
    from ctrport.run.flow import run as run_container  # noqa: PLC0415
    from ctrport.run.interruption import Interruption  # noqa: PLC0415

    async def work() -> int:
        current = asyncio.current_task()
        assert current is not None  # noqa: S101 - asyncio.run makes one
        interruption = Interruption(current)
        interruption.listen()
        try:
            async with Connection(settings) as connection:
                started = await run_container(settings, connection, wanted, interruption)
        except asyncio.CancelledError:
            if interruption.number is None:  # of before it listened
                raise
            return 128 + interruption.number
        if started.exit_code is None:
            print_lines([started.name])
            if not started.watched:
                warn(
                    "no watcher runs: the ports are published now, but not kept up when the container restarts, "
                    "ends or the firewall is reloaded (systemctl start ctrport)"
                )
        return started.exit_code or 0

    try:
        # Ctrl-C waits until the loop is there: half of one complains on standard error when it is dropped.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with asyncio.Runner() as runner:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            return runner.run(work())
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _publish(specs: list[str]) -> tuple[ports.PortMapping, ...]:
    mappings = tuple(mapping for spec in specs for mapping in ports.parse(spec))
    ports.reject_duplicates(mappings)
    return mappings


def _ipv4(text: str | None) -> IPv4Address | None:
    try:
        return IPv4Address(text) if text else None
    except AddressValueError:
        raise InputError(f"--ip {text!a} is not an IPv4 address") from None
