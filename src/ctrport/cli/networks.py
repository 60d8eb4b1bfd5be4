"""network create, ls, inspect, rm: the networks that `run --network NAME` puts containers on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrport.cli.maintenance import FormatOption
from ctrport.cli.output import Format, print_error, print_json, print_lines, print_table
from ctrport.errors import CtrportError

if TYPE_CHECKING:
    from ctrport.config import Settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Make, list and remove networks."
)


@app.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    subnet: Annotated[
        str | None, typer.Option("--subnet", metavar="CIDR", help="IPv4 subnet; else a free one is chosen.")
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option("--gateway", metavar="ADDRESS", help="IPv4 address of the host in it; else the first."),
    ] = None,
    ipv6: Annotated[
        bool | None, typer.Option("--ipv6/--no-ipv6", help="IPv6 addresses too; else as the host can.")
    ] = None,
    ipv6_subnet: Annotated[
        str | None,
        typer.Option("--ipv6-subnet", metavar="CIDR", help="IPv6 subnet; else a random unique local /64."),
    ] = None,
    mtu: Annotated[int | None, typer.Option("--mtu", help="Of bridge and containers; else the uplink's.")] = None,
    internal: Annotated[
        bool, typer.Option("--internal", help="No way out, none in, and no published ports.")
    ] = False,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Containers reach each other by published ports alone.")
    ] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Make a network, and print its name."""
    from ctrport.network import define  # noqa: PLC0415 - commands that do not need it should start without it

    wish: dict[str, Any] = {
        "name": name,
        "subnet": subnet,
        "gateway": gateway,
        "ipv6": ipv6,
        "ipv6_subnet": ipv6_subnet,
        "mtu": mtu,
        "internal": internal,
        "isolate": isolate,
    }
    define.read(**wish)  # the writer checks again; here it costs no connection
    made = _call(context.obj, "create_network", **wish)
    if format_ is Format.JSON:
        print_json(network=made)
    else:
        print_lines([made["name"]])


@app.command("ls")
def ls(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """List the networks."""
    from ctrport.network import administer, networks  # noqa: PLC0415

    root = context.obj.root
    found = [administer.describe(root, network) for network in networks.load_all(root)]
    if format_ is Format.JSON:
        print_json(networks=found)
        return
    rows = [
        (n["name"], n["bridge"], n["ipv4"], n["ipv6"] or "", _options(n), str(len(n["containers"]))) for n in found
    ]
    print_table(("NETWORK", "BRIDGE", "SUBNET", "IPV6", "OPTIONS", "CONTAINERS"), rows)


@app.command("inspect")
def inspect(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Print all that is known of a network, and who is on it."""
    from ctrport.network import administer, networks  # noqa: PLC0415

    network = administer.describe(context.obj.root, networks.load(context.obj.root, name))
    if format_ is Format.JSON:
        print_json(network=network)
        return
    on_it = [
        " ".join(filter(None, (f"{c['namespace']}/{c['id']}", c["ipv4"], c["ipv6"]))) for c in network["containers"]
    ]
    print_table(
        ("NETWORK", network["name"]),
        [
            ("bridge", network["bridge"]),
            ("subnet", f"{network['ipv4']}, gateway {network['gateway4']}"),
            ("ipv6", f"{network['ipv6']}, gateway {network['gateway6']}" if network["ipv6"] else "none"),
            ("mtu", str(network["mtu"] or "the uplink's")),
            ("options", _options(network) or "none"),
            ("containers", "\n".join(on_it) or "none"),
        ],
    )


@app.command("rm")
def rm(context: typer.Context, names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Remove networks that no container is on."""
    code = 0
    for name in names:
        try:
            _call(context.obj, "remove_network", name=name)
            print_lines([name])
        except CtrportError as error:  # told, and the others are done
            print_error(error)
            code = error.exit_code
    if code:
        raise typer.Exit(code)


def _call(settings: Settings, operation: str, **arguments: Any) -> dict[str, Any]:
    import asyncio  # noqa: PLC0415

    from ctrport.connection import Connection  # noqa: PLC0415
    from ctrport.control import writer  # noqa: PLC0415

    async def work() -> dict[str, Any]:
        async with Connection(settings) as connection, writer(settings, connection) as link:
            return await link.call(operation, **arguments)

    return asyncio.run(work())


def _options(network: dict[str, Any]) -> str:
    return ", ".join(option for option in ("internal", "isolate") if network[option])
