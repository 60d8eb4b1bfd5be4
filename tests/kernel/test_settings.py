"""Kernel settings: what is needed, by packets; how it is set, kept and put back. Each test has its own host."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.config import Config, Settings
from ctrport.errors import HostError
from ctrport.firewall.ruleset import Links
from ctrport.flush import flush
from ctrport.host import needs, sysctl, sysctl_file
from ctrport.model.workload import Key
from ctrport.network import attach, networks
from ctrport.network.networks import Network
from lab import TIMEOUT, Answer, Lab, Netns, ask, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from passes import Writer

NET = Path("/proc/sys/net")
BRIDGE = Links(bridges=frozenset({"br0"}))
TTL = "net/ipv4/ip_default_ttl"
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


@pytest.fixture
def quiet() -> Iterator[Lab]:
    """Give a host that does not forward, with a bridge and directories of its own."""
    with Lab(forwarding=False) as lab:
        lab.bridge("br0", "198.51.100.1/24")
        yield lab


def ensure(lab: Lab, state: Path, links: Links = BRIDGE, *, ipv6: bool = False) -> list[str]:
    """Set what is needed; gives what could not be set."""
    return [error.message for error in lab.host.call(lambda: needs.ensure(state, links, ipv6=ipv6))]


def restore(lab: Lab, state: Path) -> list[str]:
    return lab.host.call(lambda: sysctl.restore(state))


def settings_of(ns: Netns) -> dict[str, str]:
    """Give every net setting that can be read, but for those that move by themselves."""

    def read() -> dict[str, str]:
        found = {}
        for path in NET.rglob("*"):
            if path.is_file() and not path.name.endswith(("_count", "_id", "flush")):
                try:
                    found[str(path.relative_to(NET))] = path.read_text()
                except OSError:
                    continue
        return found

    return ns.call(read)


# ------------------------------------------------------------------------------------------------- one setting


def test_a_setting_is_changed_once_and_put_back(quiet: Lab, tmp_path: Path):
    """The first value is remembered, over many changes, until it is put back."""
    state = tmp_path / "s"
    quiet.host.sysctl(TTL, 50)
    for value, expected in (("51", True), ("51", False), ("52", True)):
        assert quiet.host.call(lambda v=value: sysctl.ensure(state, TTL, v, why="a test")) is expected
    assert quiet.host.sysctl(TTL) == "52"
    assert restore(quiet, state) == ["put back net.ipv4.ip_default_ttl from 52 to 50"]
    assert quiet.host.sysctl(TTL) == "50"
    assert restore(quiet, state) == []


def test_a_setting_that_cannot_be_written(quiet: Lab, tmp_path: Path):
    """The error says what is, what was wanted and why, with the command; one that is missing is passed over."""
    said = r"^net\.ipv4\.ip_default_ttl is 64, and setting it to x failed: .*\(why\)$"
    with pytest.raises(HostError, match=said) as caught:
        quiet.host.call(lambda: sysctl.ensure(tmp_path, TTL, "x", why="why"))
    assert caught.value.hint == "sysctl -w net.ipv4.ip_default_ttl=x"
    assert not quiet.host.call(lambda: sysctl.ensure(tmp_path, "net/ipv4/no_such", "1", why="why"))
    assert quiet.host.sysctl(TTL) == "64"


def test_the_command_for_an_interface_with_a_dot(quiet: Lab):
    """sysctl(8) takes the command that we print, also for an interface named as VLANs' are."""
    quiet.bridge("br0.100")
    (found,) = (
        each
        for each in quiet.host.call(lambda: needs.findings(Links(endpoints=frozenset({"br0.100"})), ipv6=False))
        if "route_localnet" in each.setting.name
    )
    assert found.fix == "sysctl -w net/ipv4/conf/br0.100/route_localnet=1"
    quiet.host.run(*found.fix.split())
    assert quiet.host.sysctl("net/ipv4/conf/br0.100/route_localnet") == "1"


def test_settings_of_an_interface_that_is_gone(quiet: Lab, tmp_path: Path):
    """Putting back passes over what went with its interface."""
    quiet.host.sysctl("net.ipv4.ip_forward", 1)
    ensure(quiet, tmp_path)
    assert quiet.host.sysctl("net/ipv4/conf/br0/route_localnet") == "1"
    quiet.host.ip("link delete br0")
    assert restore(quiet, tmp_path) == []


# --------------------------------------------------------------------------------------------- what is needed


def test_what_is_right_is_not_ours_to_put_back(lab: Lab, tmp_path: Path):
    """What was right before we came is neither written nor remembered."""
    lab.bridge("br0")
    for name, value in (("ipv4/conf/br0/route_localnet", 1), ("ipv6/conf/br0/accept_ra", 0)):
        lab.host.sysctl(f"net/{name}", value)
    before = settings_of(lab.host)
    assert ensure(lab, tmp_path, ipv6=True) == []
    assert not (tmp_path / sysctl.RECORD).exists()
    assert settings_of(lab.host) == before


def test_without_containers_nothing_is_needed(quiet: Lab, tmp_path: Path):
    """A host that publishes nothing and has no network of ours is left as it is."""
    before = settings_of(quiet.host)
    assert ensure(quiet, tmp_path, Links(), ipv6=True) == []
    assert settings_of(quiet.host) == before


def test_forwarding_of_one_family(quiet: Lab, tmp_path: Path):
    """IPv6 forwarding changes how a host takes addresses: it is set for IPv6 mappings only, and then kept."""
    shown = []
    for ipv6 in (False, True, False):
        for name in FORWARDING:
            quiet.host.sysctl(name, 0)
        ensure(quiet, tmp_path, ipv6=ipv6)
        shown.append([quiet.host.sysctl(name) for name in FORWARDING])
    assert shown == [["1", "0"], ["1", "1"], ["1", "1"]]
    restore(quiet, tmp_path)
    assert [quiet.host.sysctl(name) for name in FORWARDING] == ["0", "0"]


def test_looking_changes_nothing_and_finds_what_ensure_sets(quiet: Lab, tmp_path: Path):
    """`findings` names setting, value, reason and command; carrying the commands out leaves nothing to find."""
    quiet.host.sysctl("net.ipv4.conf.br0.rp_filter", 1)
    before = settings_of(quiet.host)
    found = quiet.host.call(lambda: needs.findings(BRIDGE, ipv6=True))
    assert settings_of(quiet.host) == before
    assert [(each.setting.name, each.found, each.setting.value) for each in found] == [
        ("net/ipv4/ip_forward", "0", "1"),
        ("net/ipv6/conf/all/forwarding", "0", "1"),
        ("net/ipv6/conf/br0/accept_ra", "1", "0"),
        ("net/ipv4/conf/br0/route_localnet", "0", "1"),
        ("net/ipv4/conf/br0/rp_filter", "1", "2"),
    ]
    assert str(found[0]) == "net.ipv4.ip_forward is 0 and should be 1: published ports are forwarded"
    for each in found:
        quiet.host.run(*each.fix.split())
    assert quiet.host.call(lambda: needs.findings(BRIDGE, ipv6=True)) == []
    ensure(quiet, tmp_path, ipv6=True)
    assert not (tmp_path / sysctl.RECORD).exists()


@pytest.mark.parametrize(
    ("everywhere", "own", "becomes"),
    [(0, 0, "0"), (1, 0, "2"), (0, 1, "2"), (1, 1, "2"), (2, 0, "0"), (2, 1, "1"), (1, 2, "2"), (0, 2, "2")],
)
def test_only_strict_reverse_path_filtering_is_loosened(
    quiet: Lab, tmp_path: Path, everywhere: int, own: int, becomes: str
):
    """In force is the larger of an interface's and all's: 1 becomes 2, towards containers and nowhere else."""
    quiet.bridge("br1", "203.0.113.1/25")
    quiet.host.sysctl("net.ipv4.conf.all.rp_filter", everywhere)
    for interface in ("br0", "br1", "eth0"):
        quiet.host.sysctl(f"net.ipv4.conf.{interface}.rp_filter", own)
    links = Links(bridges=frozenset({"br0"}), endpoints=frozenset({"br1", "eth0"}))  # eth0 has the default route
    ensure(quiet, tmp_path, links)
    names = ("br0", "br1", "eth0", "all")
    shown = [quiet.host.sysctl(f"net.ipv4.conf.{name}.rp_filter") for name in names]
    assert shown == [becomes, becomes, str(own), str(everywhere)]
    restore(quiet, tmp_path)
    shown = [quiet.host.sysctl(f"net.ipv4.conf.{name}.rp_filter") for name in names]
    assert shown == [str(own)] * 3 + [str(everywhere)]


# ----------------------------------------------------------------------------------- containers on two networks


def second_network(writer: Writer, name: str, number: int) -> None:
    """Connect a container to br1 as well, without filters of its own (it inherits them from the machine)."""
    inside = writer.netns[name]
    inside.add_veth(writer.lab.host, "eth1", f"second-{name}", addresses=(f"203.0.113.{number}/24",))
    writer.lab.host.ip(f"link set second-{name} master br1")
    for which in ("all", "eth0", "eth1"):
        inside.sysctl(f"net.ipv4.conf.{which}.rp_filter", 0)


def answered(writer: Writer) -> object:
    answer = ask(writer.lab.remote, "192.0.2.1", 8080, timeout=0.3)
    return (answer.name, answer.peer[0]) if isinstance(answer, Answer) else answer


@pytest.mark.parametrize("route", ["default", "192.0.2.0/24"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "others"])
def test_a_container_on_two_networks(writer: Writer, *, ours: bool, route: str):
    """Published on br0, answering by br1: strict filtering on br1 drops the answer, loose passes it.

    On networks of ours, and on others with published containers. The uplink's filter stays as it is.
    """
    lab = writer.lab
    lab.bridge("br1", "203.0.113.1/24")
    for number, name in enumerate(("a", "b"), 2):
        second_network(writer, name, number)
    if ours:
        root = writer.reconciler.settings.root
        for bridge, subnet in (("br0", "198.51.100.0/24"), ("br1", "203.0.113.0/24")):
            ipv6 = IPv6Network(f"2001:db8:{bridge[-1]}a::/64")
            networks.save(root, Network(name=bridge, bridge=bridge, ipv4=IPv4Network(subnet), ipv6=ipv6))
    else:
        writer.netns["b"].ip("route replace default via 203.0.113.1")
        writer.publish("b", "8081:80")
    lab.host.sysctl("net.ipv4.conf.all.rp_filter", 1)
    writer.publish("a", "8080:80")
    writer.netns["a"].ip(f"route replace {route} via 203.0.113.1")  # after the pass: br0's address is published
    assert answered(writer) == ("a", "192.0.2.2")
    lab.host.sysctl("net.ipv4.conf.br1.rp_filter", 1)
    assert answered(writer) is TIMEOUT
    assert lab.host.call(writer.reconciler.host_settings.mend) == ["net.ipv4.conf.br1.rp_filter"]
    assert answered(writer) == ("a", "192.0.2.2")
    assert [lab.host.sysctl(f"net.ipv4.conf.{name}.rp_filter") for name in ("all", "eth0")] == ["1", "0"]


def test_a_container_that_filters_by_itself(writer: Writer):
    """Strict filtering inside the container drops the request already: no setting of the host mends that."""
    writer.lab.bridge("br1", "203.0.113.1/24")
    second_network(writer, "a", 2)
    writer.publish("a", "8080:80")
    writer.netns["a"].ip("route add 192.0.2.0/24 via 203.0.113.1")
    assert answered(writer) == ("a", "192.0.2.2")
    writer.netns["a"].sysctl("net.ipv4.conf.eth0.rp_filter", 1)
    assert answered(writer) is TIMEOUT


# ------------------------------------------------------------------------------------------ router advertisements


def advertise(lab: Lab) -> None:
    """Have the remote say that it is a router (RFC 4861, 4.2): lifetime half an hour, no options."""

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            raw.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1%eth0", 0))

    lab.remote.call(send)


def learned(lab: Lab) -> list[str]:
    shown = lab.host.run("ip", "-json", "-6", "route", "show", "default", "proto", "ra").stdout
    return [route["dev"] for route in json.loads(shown or "[]")]


@pytest.fixture
def advertised(quiet: Lab) -> Lab:
    """Give a host that has its default route from a router advertisement."""
    quiet.host.run("ip", "-6", "route", "delete", "default")

    def taken() -> bool:
        advertise(quiet)
        return learned(quiet) == ["eth0"]

    until(taken, within=10, every=0.2, what="a default route by advertisement")
    return quiet


def test_an_advertised_route_survives_our_forwarding(advertised: Lab, tmp_path: Path):
    """accept_ra becomes 2 before forwarding does 1: the route stays, and later advertisements are taken."""
    ensure(advertised, tmp_path, ipv6=True)
    assert learned(advertised) == ["eth0"]
    assert advertised.host.sysctl("net/ipv6/conf/eth0/accept_ra") == "2"
    advertised.host.run("ip", "-6", "route", "flush", "proto", "ra")
    until(lambda: advertise(advertised) or learned(advertised) == ["eth0"], every=0.2, what="a later advertisement")
    restore(advertised, tmp_path)
    names = ("net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/all/forwarding")
    assert [advertised.host.sysctl(name) for name in names] == ["1", "0"]


def test_forwarding_alone_loses_an_advertised_route(advertised: Lab):
    """What the setting above is for: the kernel forgets its default route."""
    advertised.host.sysctl("net/ipv6/conf/all/forwarding", 1)
    assert learned(advertised) == []


def test_accept_ra_that_was_ours_is_set_again(advertised: Lab, tmp_path: Path):
    """Somebody resets it: set again, also when the routes are lost by then; a 0 is the operator's word."""
    ensure(advertised, tmp_path, ipv6=True)
    advertised.host.sysctl("net/ipv6/conf/eth0/accept_ra", 1)
    advertised.host.run("ip", "-6", "route", "flush", "proto", "ra")
    ensure(advertised, tmp_path, ipv6=True)
    assert advertised.host.sysctl("net/ipv6/conf/eth0/accept_ra") == "2"
    advertised.host.sysctl("net/ipv6/conf/eth0/accept_ra", 0)
    ensure(advertised, tmp_path, ipv6=True)
    assert advertised.host.sysctl("net/ipv6/conf/eth0/accept_ra") == "0"


def test_a_host_that_forwards_by_itself_keeps_accept_ra(advertised: Lab, tmp_path: Path):
    """Whoever forwards with accept_ra 1 has decided so: an uplink is not ours to change."""
    advertised.host.sysctl("net/ipv6/conf/eth0/accept_ra", 2)
    advertised.host.sysctl("net/ipv6/conf/all/forwarding", 1)
    advertised.host.sysctl("net/ipv6/conf/eth0/accept_ra", 1)
    assert learned(advertised) == ["eth0"]
    ensure(advertised, tmp_path, ipv6=True)
    assert advertised.host.sysctl("net/ipv6/conf/eth0/accept_ra") == "1"


# ------------------------------------------------------------------------------------------------------- flush


def test_flush_puts_every_setting_back(quiet: Lab, tmp_path: Path):
    """All of /proc/sys/net is as before, also what the kernel changes along with forwarding.

    The host forwards on one interface alone and takes no redirects. Setting ip_forward back to 0 by itself would
    turn the first off and the second on.
    """
    directory = tmp_path / "sysctl.d"
    config = Config(sysctl_directory=directory, sysctl_directory_given=True)
    settings = Settings(address="/run/x.sock", root=tmp_path / "root", state=tmp_path / "state", config=config)
    for name, value in (
        ("ipv4/conf/all/accept_redirects", 0),
        ("ipv4/conf/eth0/forwarding", 1),
        ("ipv6/conf/eth0/forwarding", 1),
        ("ipv4/conf/all/rp_filter", 1),
        ("ipv4/conf/br0/rp_filter", 1),
    ):
        quiet.host.sysctl(f"net/{name}", value)
    before = settings_of(quiet.host)
    assert before["ipv4/ip_forward"] == "0\n"
    networks.save(
        settings.root,
        Network(
            name="default",
            bridge="ctrport0",
            ipv4=IPv4Network("203.0.113.0/24"),
            ipv6=IPv6Network("2001:db8:b::/64"),
        ),
    )
    web = Key("default", "web")
    quiet.host.call(lambda: attach.attach(settings, web, "default"))
    try:
        links = Links(bridges=frozenset({"ctrport0"}), endpoints=frozenset({"br0"}))
        quiet.host.call(lambda: needs.HostSettings(settings).ensure(links, ipv6=True))
        during = settings_of(quiet.host)
        changed = sorted(name for name, value in before.items() if during[name] != value)
        assert "ipv4/ip_forward" in changed
        assert "ipv4/conf/br0/rp_filter" in changed
        assert (directory / sysctl_file.NAME).exists()
        told = quiet.host.call(lambda: flush(settings))
        assert f"removed {directory / sysctl_file.NAME}" in told
        assert settings_of(quiet.host) == before
        assert list(directory.iterdir()) == []
    finally:
        quiet.host.call(lambda: attach.detach(settings.root, web))


# ------------------------------------------------------------------------------------------- the sysctl.d file


LINES = [("net/ipv4/ip_forward", "1", "why"), ("net/ipv4/conf/br0.100/rp_filter", "2", "why not")]
TEXT = sysctl_file.HEAD + ("# why\n-net/ipv4/ip_forward = 1\n# why not\n-net/ipv4/conf/br0.100/rp_filter = 2\n")


def test_the_file_is_replaced_only_when_it_says_something_else(tmp_path: Path):
    """It is whole, readable by all, written once for the same settings, and removed when there are none."""
    directory = tmp_path / "sysctl.d"
    path = directory / sysctl_file.NAME
    sysctl_file.write(directory, LINES)
    first = path.stat()
    assert (path.read_text(), oct(first.st_mode), first.st_uid) == (TEXT, "0o100644", 0)
    sysctl_file.write(directory, LINES)
    assert path.stat().st_ino == first.st_ino
    path.write_text("net/ipv4/ip_forward = 0\n")
    sysctl_file.write(directory, LINES)
    assert path.read_text() == TEXT
    sysctl_file.write(directory, [])
    assert list(directory.iterdir()) == []
    assert sysctl_file.remove(directory) is False
    assert sysctl_file.remove(tmp_path / "none") is False


def test_no_link_is_followed(tmp_path: Path):
    """A link in place of file or draft is replaced and its target kept; one for the directory is refused."""
    directory, victim = tmp_path / "sysctl.d", tmp_path / "victim"
    directory.mkdir()
    victim.write_text("mine")
    for name in (sysctl_file.NAME, sysctl_file.DRAFT):
        (directory / name).symlink_to(victim)
    sysctl_file.write(directory, LINES)
    assert [path.name for path in directory.iterdir()] == [sysctl_file.NAME]
    assert not (directory / sysctl_file.NAME).is_symlink()
    assert (directory / sysctl_file.NAME).read_text() == TEXT
    assert victim.read_text() == "mine"
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(HostError, match=r"cannot write .*/link/99-ctrport.conf, which keeps settings"):
        sysctl_file.write(tmp_path / "link", [])


def test_a_directory_of_others_is_refused(tmp_path: Path):
    """Who can write there could replace the file: told with the command."""
    directory = tmp_path / "sysctl.d"
    directory.mkdir()
    for mode, owner in ((0o777, 0), (0o775, 0), (0o755, 1)):
        directory.chmod(mode)
        os.chown(directory, owner, 0)
        with pytest.raises(HostError, match="can be written to by others") as caught:
            sysctl_file.write(directory, LINES)
        assert caught.value.hint == f"chown root: {directory}; chmod go-w {directory}"
    assert list(directory.iterdir()) == []


def test_an_interface_s_name_cannot_say_more(tmp_path: Path):
    """A star, an equals sign or a line feed in a name would set other settings: such lines are left out."""
    names = ["net/ipv4/conf/*/rp_filter", "net/ipv4/conf/a=b/rp_filter", "net/x\nkernel/panic", "net/a b/c", "#"]
    sysctl_file.write(tmp_path / "d", [(name, "2", "why") for name in names] + LINES)
    assert (tmp_path / "d" / sysctl_file.NAME).read_text() == TEXT


def test_trouble_with_the_file_is_told_once_and_stops_nothing(
    quiet: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Settings are set where the file cannot be written; told again after it was mended and broke again."""
    directory = tmp_path / "sysctl.d"
    directory.touch()
    config = Config(sysctl_directory=directory, sysctl_directory_given=True)
    host = needs.HostSettings(Settings(state=tmp_path / "state", config=config))

    def told() -> list[str]:
        caplog.clear()
        quiet.host.call(lambda: host.ensure(BRIDGE, ipv6=False))
        return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

    (first,) = told()
    assert first.startswith(f"cannot write {directory}/99-ctrport.conf, which keeps settings from ")
    assert quiet.host.sysctl("net.ipv4.ip_forward") == "1"
    assert (told(), host.trouble) == ([], (first,))
    directory.unlink()
    assert (told(), host.trouble) == ([], ())
    (directory / sysctl_file.NAME).unlink()
    directory.rmdir()
    directory.touch()
    assert told() == [first]


def test_the_machine_s_file_has_the_machine_s_settings_alone(quiet: Lab, tmp_path: Path):
    """A writer that is made in one namespace and at work in another says nothing of the second in the first."""
    config = Config(sysctl_directory=tmp_path / "sysctl.d")
    host = needs.HostSettings(Settings(state=tmp_path / "state", config=config))
    quiet.host.call(lambda: host.ensure(BRIDGE, ipv6=True))
    assert quiet.host.sysctl("net.ipv4.ip_forward") == "1"
    assert not (tmp_path / "sysctl.d").exists()


UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "ctrport.service"
WHERE = """\
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from ctrport.config import Config
from ctrport.host import sysctl_file
print(sysctl_file.place(Config()), sysctl_file.place(Config(sysctl_directory=None)),
      sysctl_file.place(Config(sysctl_directory=Path("/x"), sysctl_directory_given=True)))
"""


@pytest.mark.parametrize("bound", [False, True], ids=["root", "unit"])
def test_only_the_first_namespace_is_the_machine(lab: Lab, *, bound: bool):
    """The default directory is written to in the network namespace of process 1, by the unit's capabilities too."""
    prefix: list[Any] = []
    if bound:
        (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
        kept = ["+" + name.removeprefix("CAP_").lower() for name in line.partition("=")[2].split()]
        prefix = ["setpriv", "--inh-caps", "-all", "--bounding-set", ",".join(["-all", *kept])]
    program = [*prefix, sys.executable, "-c", WHERE.format(path=sys.path)]
    own = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", '"$@" && true', "sh"]
    assert lab.host.run(*program).stdout == "None None /x\n"
    assert lab.host.run(*own, *program).stdout == "/run/sysctl.d None /x\n"
    other = ["nsenter", f"--net={lab.remote.path}"]
    assert lab.host.run(*own, *other, *program).stdout == "None None /x\n"
