"""`run --network cni`: real containers connected by Debian's CNI plugins, and nothing of it left afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import REFUSED, http_get, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"
ADDRESSES = ["198.51.100.2", "2001:db8:a::2"]


@pytest.fixture
def cni(ctrport: Cli) -> Cli:
    """Give the program with a CNI network of its own: bridge, host-local, and portmap in the chain."""
    directory = ctrport.directory / "net.d"
    directory.mkdir()
    ipam: dict[str, Any] = {
        "type": "host-local",
        "dataDir": str(ctrport.directory / "leases"),
        "ranges": [[{"subnet": "198.51.100.0/28"}], [{"subnet": "2001:db8:a::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    network = {"cniVersion": "1.0.0", "name": "web", "plugins": [{**bridge, "ipam": ipam}, portmap]}
    (directory / "10-web.conflist").write_text(json.dumps(network))
    ctrport.config.write_text(f'cni_config = "{directory}"\n')
    return ctrport


@pytest.fixture(params=["watched", "alone"])
def program(request: pytest.FixtureRequest, cni: Cli) -> Iterator[Cli]:
    """Give the program once beside a running watcher and once without one."""
    if request.param == "watched":
        request.getfixturevalue("watcher")
    return cni


def leases(cni: Cli) -> list[str]:
    """Give host-local's leases."""
    found: Iterator[Path] = (cni.directory / "leases").rglob("*")
    return sorted(p.name for p in found if p.is_file() and p.name[0].isdigit())


def left(cni: Cli) -> dict[str, Any]:
    """Give what is there of containers: leases, interfaces, namespaces, records and files, containers."""
    found = cni.everything()
    links = [name for name in found["links"] if name not in ("lo", "eth0", "cni0", "ctrport0")]
    files = [name for name in found["files"] if name.startswith("root/")]
    return {
        "leases": leases(cni),
        "links": links,
        "files": files,
        **{kind: found[kind] for kind in ("namespaces", "containers", "snapshots")},
    }


def answers(lab: Lab, port: int) -> None:
    until(lambda: http_get(lab.remote, HOST, port) == PAGE, within=15, what=f"the page at {port}")


@pytest.mark.parametrize("network", ["cni", "cni:web"])
def test_a_container_on_a_cni_network(program: Cli, lab: Lab, network: str):
    """Plugins give the addresses, we publish the port; it is closed after stop, and rm gives all back."""
    before = left(program)
    with program.container("--network", network, "-p", "8080:80") as name:
        answers(lab, 8080)
        assert http_get(lab.remote, "2001:db8::1", 8080) == PAGE
        for address in ("127.0.0.1", HOST):
            assert http_get(lab.host, address, 8080) == PAGE
        assert http_get(program.inside(name), HOST, 8080) == PAGE
        assert "192.0.2.2" in str(http_get(lab.remote, HOST, 8080, "/cgi-bin/whoami"))
        entry = program.entry(name)
        assert (entry["addresses"], entry["mappings"][0]["state"]) == (ADDRESSES, "active")
        assert f"{ADDRESSES[0]}\t{name}" in program.execute(name, "cat", "/etc/hosts")
        assert leases(program) == ADDRESSES
        # portmap stands in the chain, and has mapped nothing.
        assert "8080" not in lab.host.run("iptables-save").stdout
        program("stop", "-t", "0", name, check=True)
        assert http_get(lab.remote, HOST, 8080) is REFUSED
        assert leases(program) == ADDRESSES
    assert left(program) == before


def test_a_detached_container_that_removes_itself(cni: Cli, watcher: Watcher, lab: Lab):
    """`run -d --rm`: when it exits the watcher has the plugins disconnect it."""
    before = left(cni)
    name = cni.containerd.unique("web")
    ends = ("sh", "-c", "httpd -p 80 -h /www; sleep 1")
    cni(
        "run",
        "-d",
        "--rm",
        "--name",
        name,
        "--network",
        "cni",
        "-p",
        "8080:80",
        cni.containerd.image,
        *ends,
        check=True,
    )
    answers(lab, 8080)
    until(lambda: left(cni) == before, within=10, what="the end of everything")
    assert http_get(lab.remote, HOST, 8080) is REFUSED
    assert watcher.running


def test_a_container_in_the_foreground(program: Cli):
    """With --rm nothing of it is left when the command returns."""
    before = left(program)
    run = ("run", "--rm", "--network", "cni", "-p", "8080:80", program.containerd.image)
    result = program(*run, "ip", "-4", "-o", "address", "show", "dev", "eth0")
    assert result.returncode == 0
    assert f"inet {ADDRESSES[0].rpartition('.')[0]}." in result.stdout
    assert left(program) == before


def test_a_failed_run_leaves_no_lease(program: Cli):
    """A bad command, a taken port, a missing network or plugin: the error, and all is as it was."""
    with program.container("-p", "8080:80"):
        before = left(program)
        image = program.containerd.image
        for code, said, arguments in (
            (127, "no-such-program", ("--network", "cni", image, "no-such-program")),
            (125, "8080/tcp is held by", ("--network", "cni", "-p", "8080:80", image)),
            (125, "no CNI network named 'other'", ("--network", "cni:other", image)),
            (2, "--ip goes with a network of ctrport", ("--network", "cni", "--ip", "10.0.0.2", image)),
            (2, "--network 'cni:' is not cni or cni:NAME", ("--network", "cni:", image)),
        ):
            result = program("run", "-d", "--name", program.containerd.unique("bad"), *arguments)
            assert (result.returncode, said in result.stderr) == (code, True), result.stderr
            assert left(program) == before


def test_a_container_that_goes_while_nobody_watches(cni: Cli, watcher: Watcher, lab: Lab):
    """Removed by ctr while the watcher is down, or killed with it: the next start disconnects it."""
    before = left(cni)
    name = cni.containerd.unique("web")
    cni("run", "-d", "--name", name, "--network", "cni", "-p", "8080:80", cni.containerd.image, check=True)
    answers(lab, 8080)
    watcher.kill()
    cni.containerd.ctr("tasks", "delete", "--force", name)
    cni.containerd.ctr("containers", "delete", name)
    assert leases(cni) == ADDRESSES
    watcher.start()
    assert left(cni) == before


def test_a_container_that_loses_its_namespace(cni: Cli, watcher: Watcher, lab: Lab):
    """As after a reboot: the next start connects it again, and the container can be started and reached."""
    with cni.container("--network", "cni", "-p", "8080:80") as name:
        answers(lab, 8080)
        path = cni.inside(name).path
        cni("stop", "-t", "0", name, check=True)
        watcher.terminate()
        lab.host.run("umount", path)
        watcher.start()
        cni.containerd.ctr("tasks", "start", "--detach", name)
        answers(lab, 8080)


def test_with_the_rights_of_the_service(cni: Cli, lab: Lab):
    """A watcher that has the capabilities of its systemd unit and no others connects and disconnects."""
    before = left(cni)
    unit = (Path(__file__).parents[2] / "packaging/systemd/ctrport.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet=")]
    kept = ",".join(f"+{name.lower().removeprefix('cap_')}" for name in line.partition("=")[2].split())
    prefix = ("setpriv", "--no-new-privs", "--bounding-set", f"-all,{kept}")
    watcher = lab.host.popen(*prefix, *cni.argv("watch"), env=cni.environment)
    try:
        until((cni.state / "watch.sock").exists, within=15, what="the watcher")
        with cni.container("--network", "cni", "-p", "8080:80"):
            answers(lab, 8080)
    finally:
        watcher.terminate()
        watcher.wait(15)
    assert left(cni) == before


def test_a_dry_run(cni: Cli):
    """It needs no configuration, and says that the address stands for another."""
    script = cni("run", "--dry-run", "--network", "cni:anything", "-p", "8080:80", "redis", check=True).stdout
    assert "# 192.0.2.2 stands for the address that the CNI plugins choose" in script
    assert "tcp . 8080" in script
    assert "ctrport.io/network=cni:anything" in script
