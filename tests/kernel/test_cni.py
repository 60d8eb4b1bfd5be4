"""CNI networks, with Debian's plugins in the namespace of a host: what is made, asked for and taken back."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.config import Config, Settings
from ctrport.errors import HostError, NotFoundError
from ctrport.model.workload import Key
from ctrport.network import attach, cni, cni_attach, netns
from lab import Answer, Lab, Netns, ask, serve, until

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB = Key("default", "web-cni-kernel")
PLUGINS = Path("/usr/lib/cni")

# Keeps what it was called with; a file NAME.COMMAND beside it is what it fails with.
SPY = """\
#!/usr/bin/python3 -I
import json, os, sys
from pathlib import Path
here, command = Path(sys.argv[0]), os.environ["CNI_COMMAND"]
call = {k: v for k, v in os.environ.items() if k.startswith("CNI_")}
call |= {"plugin": here.name, "stdin": json.load(sys.stdin)}
with (here.parent / "calls").open("a") as file:
    print(json.dumps(call), file=file)
refusal = here.with_name(f"{here.name}.{command}")
if refusal.exists():
    print(refusal.read_text())
    sys.exit(1)
if command == "ADD":
    print(json.dumps({"cniVersion": call["stdin"]["cniVersion"], "from": here.name}))
"""


class Machine:
    """A host with a CNI configuration of its own."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.host, self.directory = lab, lab.host, directory
        self.leases = directory / "leases"
        self.bin = directory / "bin"
        self.bin.mkdir()
        (directory / "net.d").mkdir()
        config = Config(cni_config=directory / "net.d", cni_plugins=(self.bin, PLUGINS))
        self.settings = Settings(root=directory / "root", state=directory / "state", config=config)
        self.root = self.settings.root

    def configure(self, file: str, **network: Any) -> None:
        (self.directory / "net.d" / file).write_text(json.dumps({"cniVersion": "1.0.0", **network}))

    def spy(self, name: str = "spy") -> Path:
        """Make a plugin that writes down each call."""
        (self.bin / name).write_text(SPY)
        (self.bin / name).chmod(0o755)
        return self.bin / name

    def bridge(self, **more: Any) -> dict[str, Any]:
        """Give the configuration of the bridge plugin with host-local addresses."""
        ranges = [[{"subnet": "198.51.100.0/28"}], [{"subnet": "2001:db8:a::/64"}]]
        ipam = {"type": "host-local", "dataDir": str(self.leases), "ranges": ranges}
        ipam["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        return {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam, **more}

    def attach(self, name: str = "cni", key: Key = WEB) -> attach.Attachment:
        return self.host.call(lambda: attach.attach(self.settings, key, name))

    def detach(self, key: Key = WEB) -> None:
        self.host.call(lambda: attach.detach(self.root, key))

    def repair(self, known: set[Key]) -> list[Key]:
        return self.host.call(lambda: attach.repair(self.settings, known, set()))

    def calls(self) -> list[dict[str, Any]]:
        """Give the calls of the spies since the last look."""
        path = self.bin / "calls"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def left(self) -> list[str]:
        """Give what is there of containers: host-local's leases, interfaces, records, directories, namespaces."""
        leases = [p.name for p in self.leases.rglob("*") if p.is_file() and p.name[0].isdigit()]
        interfaces = {name for _, name in self.host.call(socket.if_nameindex)} - {"lo", "eth0", "cni0"}
        records = [p.name for p in self.root.rglob("*") if p.is_file()]
        directories = [p.name for p in self.root.glob("containers/*/*")]
        spaces = [p.name for p in netns.DIRECTORY.glob(f"ctrport-{WEB.id}-*")]
        return [*leases, *sorted(interfaces), *records, *directories, *spaces]


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> Iterator[Machine]:
    """Give a host; what was attached is detached at the end."""
    made = Machine(lab, tmp_path)
    yield made
    for record in list(cni_attach.every(made.root)):
        made.detach(record.container)


def test_a_container_on_a_bridge(machine: Machine):
    """Debian's plugins give addresses and routes; after a detach nothing is left of it, twice is once."""
    machine.configure("10-web.conflist", name="web", plugins=[machine.bridge()])
    made = machine.attach()
    assert (str(made.ipv4), str(made.ipv6), made.bridge) == ("198.51.100.2", "2001:db8:a::2", "cni0")
    inside = Netns.at(made.netns, "web")
    assert inside.sysctl("net.ipv4.ip_unprivileged_port_start") == "0"
    with inside, serve(inside, 80):
        assert isinstance(ask(inside, "127.0.0.1", 80), Answer)
        assert isinstance(ask(machine.host, "198.51.100.2", 80), Answer)
    assert machine.left() != []
    machine.detach()
    assert machine.left() == []
    machine.detach()


def test_which_network(machine: Machine):
    """Without a name the first file that is a network, with one that network; else what there is is told."""
    with pytest.raises(NotFoundError, match="no CNI network is configured in"):
        machine.attach()
    (machine.directory / "net.d/00-broken.conf").write_text("{")
    (machine.directory / "net.d/05-odd.conf").write_text('{"name": "odd", "type": "../../bin/sh"}')
    (machine.directory / "net.d/99-other.txt").write_text("{}")
    machine.configure("20-b.conf", name="b", **machine.bridge())
    machine.configure("10-a.conflist", name="a", plugins=[machine.bridge()])
    directory = machine.directory / "net.d"
    assert [cni.configuration(directory, name)["name"] for name in (None, "a", "b")] == ["a", "a", "b"]
    assert cni.configuration(directory, "b")["plugins"][0]["type"] == "bridge"
    with pytest.raises(NotFoundError, match="no CNI network named 'c'") as caught:
        machine.attach("cni:c")
    assert caught.value.hint == "there: a, b"
    assert str(machine.attach("cni:b").ipv4) == "198.51.100.2"


def test_what_plugins_are_told(machine: Machine):
    """In order, each with the result of the one before; in reverse for DEL, each with the last result."""
    machine.spy("first")
    machine.spy("second")
    portmap = {"type": "first", "capabilities": {"portMappings": True}}
    machine.configure("10-x.conflist", name="x", plugins=[machine.bridge(), portmap, {"type": "second"}])
    # The spies' results have no addresses: what counts is what is in the namespace.
    made = machine.attach()
    first, second = machine.calls()
    assert {k: v for k, v in first.items() if k.startswith("CNI_")} == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": made.netns.name,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": str(made.netns),
        "CNI_PATH": f"{machine.bin}:/usr/lib/cni",
    }
    assert first["stdin"].pop("prevResult")["ips"][0]["address"] == "198.51.100.2/28"
    # A capability is declared by the configuration; that nothing comes with it keeps portmap from mapping.
    assert first["stdin"] == {"cniVersion": "1.0.0", "name": "x", **portmap}
    assert second["stdin"]["prevResult"] == {"cniVersion": "1.0.0", "from": "first"}
    # DEL is told what ADD was told, whatever the file says by then.
    (machine.directory / "net.d/10-x.conflist").unlink()
    machine.detach()
    last = {"cniVersion": "1.0.0", "from": "second"}
    assert [(c["plugin"], c["CNI_COMMAND"], c["stdin"]["prevResult"]) for c in machine.calls()] == [
        ("second", "DEL", last),
        ("first", "DEL", last),
    ]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_older_configurations(machine: Machine, version: str):
    """Since 0.4.0 DEL is given the result; before it is not."""
    machine.spy()
    machine.configure("10-x.conflist", cniVersion=version, name="x", plugins=[machine.bridge(), {"type": "spy"}])
    machine.attach()
    machine.detach()
    added, deleted = machine.calls()
    assert added["stdin"]["cniVersion"] == version
    assert ("prevResult" in deleted["stdin"]) is (version == "0.4.0")
    assert machine.left() == []


def test_a_failed_add_leaves_nothing(machine: Machine):
    """The plugin's own words are told, and what the plugins before it made is taken back by DEL."""
    machine.spy().with_name("spy.ADD").write_text('{"code": 7, "msg": "no such thing", "details": "at all"}')
    machine.configure("10-x.conflist", name="x", plugins=[machine.bridge(), {"type": "spy"}])
    with pytest.raises(HostError, match="ADD of the CNI plugin spy, network x, failed: no such thing: at all"):
        machine.attach()
    assert [c["CNI_COMMAND"] for c in machine.calls()] == ["ADD", "DEL"]
    assert machine.left() == []


def test_a_failed_add_whose_del_fails_too(machine: Machine):
    """DEL of the other plugins is called all the same, and the namespace goes."""
    path = machine.spy()
    for command in ("ADD", "DEL"):
        path.with_name(f"spy.{command}").write_text("garbage")
    machine.configure("10-x.conflist", name="x", plugins=[machine.bridge(), {"type": "spy"}])
    with pytest.raises(HostError, match="failed: garbage"):
        machine.attach()
    assert machine.left() == []


@pytest.mark.parametrize("missing", ["type", "ipam"])
def test_a_plugin_that_is_not_there(machine: Machine, missing: str):
    """It is told before anything is made, with where it was looked for."""
    plugin = machine.bridge()
    (plugin if missing == "type" else plugin["ipam"])["type"] = "nowhere"
    machine.configure("10-x.conflist", name="x", plugins=[plugin])
    with pytest.raises(HostError, match=r"CNI plugin nowhere of network x is in none of .*/usr/lib/cni") as caught:
        machine.attach()
    assert "containernetworking-plugins" in (caught.value.hint or "")
    assert machine.left() == []


def test_no_address(machine: Machine):
    """A network that gives none is no use for a published port, and is told."""
    machine.spy()
    machine.configure("10-x.conf", name="x", type="spy")
    with pytest.raises(HostError, match="CNI network x gave default/web-cni-kernel no address"):
        machine.attach()
    assert machine.left() == []


def test_a_failed_del_is_tried_again(machine: Machine):
    """The record stays until the plugins have disconnected: nothing is forgotten, and the pass goes on."""
    refusal = machine.spy().with_name("spy.DEL")
    machine.configure("10-x.conflist", name="x", plugins=[machine.bridge(), {"type": "spy"}])
    machine.attach()
    refusal.write_text("{}")
    with pytest.raises(HostError, match="DEL of the CNI plugin spy"):
        machine.detach()
    assert machine.repair(set()) == []
    assert [r.container for r in cni_attach.every(machine.root)] == [WEB]
    refusal.unlink()
    machine.repair(set())
    assert machine.left() == []


def test_leftovers(machine: Machine):
    """What a crash leaves, before ADD has ended or after, is disconnected by the next full pass."""
    machine.configure("10-x.conflist", name="x", plugins=[machine.bridge()])
    machine.attach()
    (path,) = machine.root.glob("cni/*/*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "result": None}))
    assert machine.repair({WEB}) == []
    assert len(machine.left()) > 4
    machine.repair(set())
    assert machine.left() == []
    path.write_text("")
    machine.repair(set())  # told, and no reason to fail
    path.unlink()


@pytest.mark.parametrize("accident", ["reboot", "plain file"])
def test_after_a_reboot(machine: Machine, accident: str):
    """The namespace is made again at the same path and connected; host-local's old lease is no obstacle."""
    machine.configure("10-x.conflist", name="x", plugins=[machine.bridge()])
    made = machine.attach()
    netns.remove(made.netns.name)
    if accident == "plain file":
        made.netns.touch()
    assert machine.repair({WEB}) == [WEB]
    assert netns.is_mounted(made.netns)
    inside = Netns.at(made.netns, "web")
    with inside, serve(inside, 80):
        shown = json.loads(inside.run("ip", "-json", "-4", "address", "show", "dev", "eth0").stdout)
        (address,) = [a["local"] for link in shown for a in link.get("addr_info", ())]
        assert isinstance(ask(machine.host, address, 80), Answer)
    assert machine.repair({WEB}) == []
    machine.detach()
    assert machine.left() == []


def test_a_detach_without_its_namespace(machine: Machine):
    """The lease is given back although the namespace is gone."""
    machine.configure("10-x.conflist", name="x", plugins=[machine.bridge()])
    made = machine.attach()
    netns.remove(made.netns.name)
    made.netns.touch()
    machine.detach()
    # The kernel takes a namespace apart, and its veth pair with it, after the last name is gone.
    until(lambda: machine.left() == [], what="an end without remains")
    assert not os.path.lexists(made.netns)
