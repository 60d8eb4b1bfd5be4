"""`ctrport run` as a user of `docker run -p` knows it: real packets, with and without a watcher."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from images import busybox_image
from lab import REFUSED, Failure, ask, http_get, serve, until

if TYPE_CHECKING:
    from lab import Lab, Netns
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST, HOST_ALIAS, REMOTE = "192.0.2.1", "192.0.2.10", "192.0.2.2"
HOST6 = "2001:db8::1"
FIRST = "10.208.0.2"  # the first address of the first subnet that a host without routes there gets
SLEEP = ("sleep", "600")
ENDS_SOON = ("sh", "-c", "httpd -p 80 -h /www; sleep 1")
UNWATCHED = (
    "ctrport: warning: no watcher runs: the ports are published now, but not kept up when the container restarts, "
    "ends or the firewall is reloaded (systemctl start ctrport)\n"
)


def answers(ns: Netns, address: str, port: int, *, within: float = 3.0) -> str | Failure:
    """Give the page; a program inside may need a moment until it listens."""
    return until(lambda: (page := http_get(ns, address, port)) == PAGE and page, within=within, what="the page")


def refused(ns: Netns, address: str, port: int, *, within: float = 5.0) -> None:
    until(lambda: http_get(ns, address, port) is REFUSED, within=within, what=f"refusal at {address}:{port}")


def mapping(port: int, host: int | None, **other: Any) -> dict[str, Any]:
    """Give a mapping in the shape of `port --format json`."""
    shape = {"host_ip": None, "host_port": host, "host_port_pool": None}
    return {**shape, "container_port": port, "protocol": "tcp", **other}


def active(*arguments: Any, **other: Any) -> dict[str, Any]:
    """Give a mapping in the shape of `ps --format json`."""
    return {**mapping(*arguments, **other), "state": "active", "reason": ""}


def task_pid(ctrport: Cli, name: str) -> int:
    tasks = [line.split() for line in ctrport.containerd.ctr("tasks", "list").splitlines()[1:]]
    return next((int(task[1]) for task in tasks if task[0] == name and task[2] == "RUNNING"), 0)


# ---------------------------------------------------------------------------------------------- publishing


def test_a_remote_peer_is_answered_when_run_returns(program: Cli, lab: Lab):
    """Remote peers, the host and a sibling get the page at the published port; nobody does after rm."""
    with program.container("-p", "8080:80") as name, program.container(word="sibling") as sibling:
        assert answers(lab.remote, HOST, 8080) == PAGE
        assert answers(lab.remote, HOST6, 8080) == PAGE
        sibling_ns = program.inside(sibling)
        for ns, address in (
            (lab.remote, HOST_ALIAS),
            (lab.host, "127.0.0.1"),
            (lab.host, HOST),
            (lab.host, HOST6),
            (sibling_ns, HOST),
            (sibling_ns, HOST6),
            (program.inside(name), HOST),
        ):
            assert http_get(ns, address, 8080) == PAGE, (ns, address)
        assert http_get(lab.remote, HOST, 8081) is REFUSED
        assert REMOTE in str(http_get(lab.remote, HOST, 8080, "/cgi-bin/whoami"))
    assert http_get(lab.remote, HOST, 8080) is REFUSED


def test_what_run_prints(ctrport: Cli, watcher: Watcher):
    """`run -d` prints the container's name alone; without a watcher it says what will not be kept up."""
    outputs = []
    for _ in range(2):
        name = ctrport.containerd.unique("web")
        result = ctrport("run", "-d", "--name", name, "-p", "8080:80", ctrport.containerd.image)
        outputs.append((result.returncode, result.stdout.replace(name, "NAME"), result.stderr))
        ctrport("rm", "-f", name, check=True)
        watcher.terminate() if watcher.running else None
    assert outputs == [(0, "NAME\n", ""), (0, "NAME\n", UNWATCHED)]


def test_beside_a_watcher_a_command_asks_no_containerd_itself(watched: Cli):
    """The watcher is connected: a detached run, also with what only containerd knows, loads no gRPC of its own."""
    name = watched.containerd.unique("light")
    options = ("-d", "--name", name, "-p", "8080:80", "-P", "-u", "nobody", "--restart", "always")
    image = watched.containerd.image
    for arguments in (
        ("run", *options, image, "sleep", "600"),
        ("ps",),
        ("port", name),
        ("sync",),
        ("unpublish", name, "--all"),
    ):
        result = watched(*arguments, check=True, env={"PYTHONPROFILEIMPORTTIME": "1"})
        loaded = set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", result.stderr, flags=re.MULTILINE))
        assert "ctrport.control" in loaded
        assert loaded & {"grpc", "google.protobuf", "pyroute2", "nftables", "ctrport.service"} == set()
    assert watched.spec(name)["process"]["user"]["uid"] == 65534
    watched("rm", "-f", name, check=True)


def test_redis_is_reached_from_everywhere(program: Cli, lab: Lab):
    """redis-cli stores and reads through the published port: remote, host by 127.0.0.1 and address, sibling."""
    image = program.containerd.redis_image
    with (
        program.container("-p", "6379:6379", word="redis", image=image),
        program.container(word="sibling", command=SLEEP) as sibling,
    ):

        def redis(ns: Netns, address: str, *command: str) -> str:
            return ns.run("redis-cli", "-h", address, "-p", "6379", *command, check=False).stdout

        until(lambda: redis(lab.remote, HOST, "PING") == "PONG\n", what="PONG")
        assert redis(lab.remote, HOST, "SET", "colour", "green") == "OK\n"
        places = (
            (lab.remote, HOST6),
            (lab.host, "127.0.0.1"),
            (lab.host, HOST),
            (program.inside(sibling), HOST),
        )
        assert [redis(ns, address, "GET", "colour") for ns, address in places] == ["green\n"] * 4


def test_publish_all(ctrport: Cli, lab: Lab, watcher: Watcher):
    """-P gives exposed ports of image and --expose, that -p does not name, a port of the host's choice each."""
    assert watcher.running
    options = ("-P", "--expose", "8443", "--expose", "53/udp", "-p", "8443:8443")
    with ctrport.container(*options) as name:
        found = ctrport.json("port", name)["mappings"]
        automatic = {(m["container_port"], m["protocol"]): m["host_port"] for m in found}
        web, dns = automatic[80, "tcp"], automatic[53, "udp"]
        assert all(32768 <= port <= 60999 for port in (web, dns))
        assert found == [
            mapping(8443, 8443),
            mapping(53, dns, protocol="udp"),
            mapping(80, web),
        ]
        assert answers(lab.remote, HOST, web) == PAGE
        with serve(ctrport.inside(name), 53, "udp", name="dns"):
            assert ask(lab.remote, HOST, dns, "udp").name == "dns"


def test_udp(watched: Cli, lab: Lab):
    """A published UDP port answers and keeps the remote client's address; the TCP port of that number is closed."""
    with watched.container("-p", "5353:53/udp", command=SLEEP) as name:
        with serve(watched.inside(name), 53, "udp", name="dns"):
            answer = ask(lab.remote, HOST, 5353, "udp", source_port=4001)
            assert (answer.name, answer.peer) == ("dns", (REMOTE, 4001))
            assert ask(lab.host, "127.0.0.1", 5353, "udp").name == "dns"
        assert ask(lab.remote, HOST, 5353) is REFUSED


def test_host_ip(program: Cli, lab: Lab):
    """A mapping on one host IP answers there and nowhere else; two addresses may have one port each."""
    specs = ("-p", "127.0.0.1:8080:80", "-p", f"{HOST_ALIAS}:8081:80", "-p", f"[{HOST6}]:8082:80")
    with program.container(*specs) as name:
        assert answers(lab.host, "127.0.0.1", 8080) == PAGE
        assert answers(lab.remote, HOST_ALIAS, 8081) == PAGE
        assert answers(lab.remote, HOST6, 8082) == PAGE
        closed = ((HOST, 8080), (HOST, 8081), (HOST, 8082), (HOST6, 8081))
        assert [http_get(lab.remote, *place) for place in closed] == [REFUSED] * 4
        with program.container("-p", f"{HOST}:8081:80", word="second"):
            assert answers(lab.remote, HOST, 8081) == PAGE
        assert program("port", name).stdout.splitlines() == [
            "80/tcp -> 127.0.0.1:8080",
            f"80/tcp -> {HOST_ALIAS}:8081",
            f"80/tcp -> [{HOST6}]:8082",
        ]


def test_pool_and_automatic(watched: Cli, lab: Lab):
    """A pool gives its first free port, then the next, then says that none is left; no port means any."""
    pool = ("-p", "8000-8001:80")
    with watched.container(*pool) as one, watched.container(*pool) as two, watched.container("-p", "80") as three:
        assert [watched.json("port", each)["mappings"] for each in (one, two)] == [
            [mapping(80, 8000, host_port_pool=[8000, 8001])],
            [mapping(80, 8001, host_port_pool=[8000, 8001])],
        ]
        (automatic,) = watched.json("port", three)["mappings"]
        assert automatic == mapping(80, automatic["host_port"])
        for port in (8000, 8001, automatic["host_port"]):
            assert answers(lab.remote, HOST, port) == PAGE
        late = watched("run", "-d", "--name", watched.containerd.unique("late"), *pool, watched.containerd.image)
        assert (late.returncode, late.stdout) == (125, "")
        assert "8000-8001:80/tcp: all ports are allocated" in late.stderr


def test_port(watched: Cli):
    """`port` prints docker's lines, IPv6 in brackets; one port's right-hand sides; an unpublished one is exit 1."""
    with watched.container("-p", "8080:80", "-p", "5353:53/udp") as name:
        assert watched("port", name).stdout.splitlines() == [
            "53/udp -> 0.0.0.0:5353",
            "53/udp -> [::]:5353",
            "80/tcp -> 0.0.0.0:8080",
            "80/tcp -> [::]:8080",
        ]
        assert watched("port", name, "80").stdout.splitlines() == ["0.0.0.0:8080", "[::]:8080"]
        assert watched("port", name, "53/udp").stdout.splitlines() == ["0.0.0.0:5353", "[::]:5353"]
        none = watched("port", name, "80/udp")
        assert (none.returncode, none.stdout) == (1, "")
        assert f"no public port '80/udp' published for {name}" in none.stderr
        assert watched.json("port", name, "80") == {"version": 1, "mappings": [mapping(80, 8080)]}
    gone = watched("port", name)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert name in gone.stderr


def test_ps(program: Cli):
    """`ps` shows container, image, status, addresses and grouped ports; as JSON in full and in one shape."""
    name = program.containerd.unique("web")
    publish = ("-p", "3000-3001:8080-8081", "-p", "127.0.0.1:5353:53/udp")
    program("run", "-d", "--name", name, *publish, program.containerd.image, check=True)
    try:
        network = json.loads((program.root / "networks/default/network.json").read_text())
        ipv6 = network["ipv6"].replace("/64", "2")
        netns = program.json("ps")["containers"][0]["netns"]
        assert re.fullmatch(rf"/run/netns/ctrport-{name}-[0-9a-f]{{8}}", netns)
        assert program.json("ps") == {
            "version": 1,
            "containers": [
                {
                    "id": name,
                    "name": name,
                    "namespace": "default",
                    "image": program.containerd.image,
                    "status": "running",
                    "addresses": [FIRST, ipv6],
                    "netns": netns,
                    "mappings": [
                        active(8080, 3000),
                        active(8081, 3001),
                        active(53, 5353, host_ip="127.0.0.1", protocol="udp"),
                    ],
                    "problems": [],
                }
            ],
        }
        head, first, second = (re.split(r" {3,}", line) for line in program("ps").stdout.splitlines())
        assert head == ["CONTAINER", "IMAGE", "STATUS", "ADDRESS", "PORTS"]
        ports = "127.0.0.1:5353->53/udp, 0.0.0.0:3000-3001->8080-8081/tcp, [::]:3000-3001->8080-8081/tcp"
        assert first == [name, program.containerd.image, "running", FIRST, ports]
        assert second == ["", ipv6]
        program("stop", "-t", "0", name, check=True)
        assert program.json("ps")["containers"] == []
        stopped = program.entry(name)
        assert (stopped["status"], stopped["addresses"], stopped["mappings"]) == ("none", [], [])
        assert len(program("ps", "-a").stdout.splitlines()) == 2
    finally:
        program("rm", "-f", name)
    assert program.json("ps", "-a") == {"version": 1, "containers": []}


def test_ten_thousand_ports(ctrport: Cli, watcher: Watcher, lab: Lab, record_property: Any):
    """A range of 10,000 ports is published, both ends answer, and it goes away with the container."""
    assert watcher.running
    begun = time.monotonic()
    with ctrport.container("-p", "20000-29999:20000-29999", command=SLEEP) as name:
        record_property("seconds of run with 10,000 ports", time.monotonic() - begun)
        print(f"run with 10,000 ports: {time.monotonic() - begun:.2f} s")  # noqa: T201 - a measurement
        inside = ctrport.inside(name)
        for port in (20000, 25000, 29999):
            with serve(inside, port):
                assert ask(lab.remote, HOST, port).local == (FIRST, port)
        assert ask(lab.remote, HOST, 30000) is REFUSED
        assert ctrport.entry(name)["mappings"] == [active(port, port) for port in range(20000, 30000)]
        begun = time.monotonic()
    print(f"rm with 10,000 ports: {time.monotonic() - begun:.2f} s")  # noqa: T201 - a measurement
    assert "elements" not in lab.host.nft("list map inet ctrport published4")


# ------------------------------------------------------------------------------------------------ lifecycle


def test_stop_and_rm(program: Cli, lab: Lab):
    """After stop the port refuses while address and files stay; after rm nothing of the container is there."""
    with program.container(word="first"):
        before = program.everything()
        name = program.containerd.unique("web")
        program("run", "-d", "--name", name, "-p", "8080:80", program.containerd.image, check=True)
        answers(lab.remote, HOST, 8080)
        running = program("rm", name)
        assert (running.returncode, running.stdout) == (1, "")
        assert f"container {name} is running" in running.stderr
        assert f"ctrport stop {name}" in running.stderr
        assert http_get(lab.remote, HOST, 8080) == PAGE
        stopped = program("stop", "-t", "1", name)
        assert (stopped.returncode, stopped.stdout) == (0, f"{name}\n")
        assert http_get(lab.remote, HOST, 8080) is REFUSED
        files = f"root/containers/default/{name}"
        assert files in program.everything()["files"]
        assert program("stop", name).returncode == 0
        assert program("rm", name).stdout == f"{name}\n"
        assert program.everything() == before
        again = program("rm", name)
        assert (again.returncode, again.stdout) == (1, "")
        assert name in again.stderr


def test_stop_by_the_signal_of_the_image(ctrport: Cli):
    """`stop` sends what the image's STOPSIGNAL says, which ctr has put into a label, and not SIGTERM."""
    script = 'trap "echo winch; exit" WINCH; trap "" TERM; echo ready; while :; do sleep 0.05; done'
    with ctrport.container(command=("sh", "-c", script)) as name:
        ctrport.containerd.ctr("containers", "label", name, "io.containerd.image.config.stop-signal=SIGWINCH")
        output = ctrport.root / "containers" / "default" / name / "output.log"
        until(lambda: output.read_text() == "ready\n", what="the program's start")
        ctrport("stop", name, check=True)
        assert output.read_text() == "ready\nwinch\n"


def test_rm_of_several(watched: Cli):
    """`rm -f` kills and removes several; one that is not there is told, and the others are done."""
    with watched.container(word="kept"):
        before = watched.everything()
        names = [watched.containerd.unique("web") for _ in range(2)]
        for port, name in enumerate(names, 8080):
            watched("run", "-d", "--name", name, "-p", f"{port}:80", watched.containerd.image, check=True)
        result = watched("rm", "-f", names[0], "nothing-of-that-name", names[1])
        assert (result.returncode, result.stdout) == (1, f"{names[0]}\n{names[1]}\n")
        assert "nothing-of-that-name" in result.stderr
        assert watched.everything() == before


def test_restart_policy(ctrport: Cli, watcher: Watcher, lab: Lab):
    """A killed container with --restart always is back without help, at its address; stop ends it."""
    assert watcher.running
    with ctrport.container("--restart", "always", "-p", "8080:80") as name:
        answers(lab.remote, HOST, 8080)
        pid, addresses = task_pid(ctrport, name), ctrport.entry(name)["addresses"]
        ctrport.containerd.ctr("tasks", "kill", "-s", "KILL", name)
        refused(lab.remote, HOST, 8080)
        answers(lab.remote, HOST, 8080, within=15)
        assert task_pid(ctrport, name) not in (0, pid)
        assert ctrport.entry(name)["addresses"] == addresses
        ctrport("stop", "-t", "1", name, check=True)
        time.sleep(2.5)  # two looks of the restart monitor
        assert task_pid(ctrport, name) == 0
        assert http_get(lab.remote, HOST, 8080) is REFUSED


def test_plain_ctr_run(ctrport: Cli, watcher: Watcher, lab: Lab):
    """A container of plain `ctr run` with the annotation is published by the watcher alone, on any network."""
    bridge = lab.bridge("br0", "198.51.100.1/24")
    ns = lab.container_like("plain", bridge, "198.51.100.2/24", gateway4="198.51.100.1")
    name = ctrport.containerd.unique("plain")
    annotation = "ctrport.io/publish=8080:80"
    where = f"network:{ns.path}"
    image = ctrport.containerd.image
    ctrport.containerd.ctr("run", "-d", "--annotation", annotation, "--with-ns", where, image, name)
    answers(lab.remote, HOST, 8080)
    assert REMOTE in str(http_get(lab.remote, HOST, 8080, "/cgi-bin/whoami"))
    assert http_get(lab.host, "127.0.0.1", 8080) == PAGE
    entry = ctrport.entry(name)
    assert (entry["addresses"], entry["mappings"]) == (["198.51.100.2"], [active(80, 8080)])
    assert ctrport("port", name).stdout == "80/tcp -> 0.0.0.0:8080\n"
    ctrport.containerd.ctr("tasks", "kill", "-s", "KILL", name)
    refused(lab.remote, HOST, 8080)
    until(lambda: ctrport.containerd.ctr("tasks", "delete", name, check=False) is not None)
    assert ctrport("rm", "-f", name).returncode == 0
    assert "unpublished default/" in watcher.log
    ns.close()


@pytest.mark.parametrize("end", ["kill -9", "by itself"])
def test_the_end_of_a_container(ctrport: Cli, watcher: Watcher, lab: Lab, end: str):
    """A container that is killed or ends by itself loses its mapping at once; the port is free for the next."""
    assert watcher.running
    command = ENDS_SOON if end == "by itself" else ()
    with ctrport.container("-p", "8080:80", command=command) as name:
        answers(lab.remote, HOST, 8080)
        if end == "kill -9":
            ctrport.containerd.ctr("tasks", "kill", "-s", "KILL", name)
        until(lambda: ctrport.entry(name)["mappings"] == [], what="the end of the mapping")
        assert http_get(lab.remote, HOST, 8080) is REFUSED
        assert ctrport.entry(name)["status"] == "stopped"
        with ctrport.container("-p", "8080:80", word="next"):
            assert answers(lab.remote, HOST, 8080) == PAGE


def test_what_leaves_a_mapping_alone(ctrport: Cli, watcher: Watcher, lab: Lab):
    """SIGHUP, pause and resume, and the end of an exec'ed process do not touch the mapping."""
    ctr = ctrport.containerd.ctr
    with ctrport.container("-p", "8080:80", command=("sh", "-c", "trap : HUP; httpd -f -p 80 -h /www")) as name:
        answers(lab.remote, HOST, 8080)
        before, told = ctrport.everything(), watcher.log
        ctr("tasks", "kill", "-s", "HUP", name)
        ctrport.containerd.ctr("tasks", "exec", "--exec-id", "ends", name, "true")
        ctr("tasks", "exec", "--exec-id", "failing", name, "false", check=False)
        ctr("tasks", "pause", name)
        paused = ctrport.entry(name)
        assert (paused["status"], paused["mappings"]) == ("paused", [active(80, 8080)])
        ctr("tasks", "resume", name)
        assert answers(lab.remote, HOST, 8080) == PAGE
        assert ctrport("sync").stdout == "in sync: 0 changes\n"
        assert ctrport.everything() == before
        assert watcher.log == told


def test_rm_option_detached(ctrport: Cli, watcher: Watcher, lab: Lab):
    """`run -d --rm` leaves nothing once the container has ended, whether by itself, by kill or by stop."""
    with ctrport.container(word="kept"):
        before = ctrport.everything()
        image = ctrport.containerd.image
        for end in ("itself", "kill", "stop"):
            name = ctrport.containerd.unique(end)
            command = ENDS_SOON if end == "itself" else ()
            ctrport("run", "-d", "--rm", "--name", name, "-p", "8080:80", image, *command, check=True)
            answers(lab.remote, HOST, 8080)
            if end == "kill":
                ctrport.containerd.ctr("tasks", "kill", "-s", "KILL", name)
            elif end == "stop":
                assert ctrport("stop", "-t", "1", name).stdout == f"{name}\n"
            until(lambda: ctrport.everything() == before, what=f"nothing left after {end}: {watcher.log}")
            assert http_get(lab.remote, HOST, 8080) is REFUSED


def test_rm_option_in_the_foreground(program: Cli, lab: Lab):
    """A foreground `run --rm` serves its port while it lives and leaves nothing when it has ended."""
    with program.container(word="kept"):
        before = program.everything()
        name = program.containerd.unique("web")
        process = program.popen("run", "--rm", "--name", name, "-p", "8080:80", program.containerd.image)
        answers(lab.remote, HOST, 8080, within=10)
        program.containerd.ctr("tasks", "kill", "-s", "KILL", name)
        assert process.wait(15) == 137
        assert program.everything() == before
        assert http_get(lab.remote, HOST, 8080) is REFUSED


# ------------------------------------------------------------------------------------------------- networks


def test_network_host(ctrport: Cli, lab: Lab):
    """--network host with -p warns and runs; the container listens on the host itself."""
    name = ctrport.containerd.unique("web")
    image = ctrport.containerd.image
    result = ctrport("run", "-d", "--network", "host", "--name", name, "-p", "8080:80", image)
    try:
        assert (result.returncode, result.stdout) == (0, f"{name}\n")
        assert "-p does nothing with --network host" in result.stderr
        assert answers(lab.remote, HOST, 80) == PAGE
        assert http_get(lab.remote, HOST, 8080) is REFUSED
        assert lab.host.run("nft", "list", "tables").stdout == ""
    finally:
        ctrport("rm", "-f", name)


def test_network_none(ctrport: Cli):
    """--network none gives the container lo and nothing else."""
    with ctrport.container("--network", "none", command=SLEEP) as name:
        links = ctrport.execute(name, "ip", "-o", "link")
        assert [line.split(":")[1].strip() for line in links.splitlines()] == ["lo"]
        assert ctrport.execute(name, "cat", "/etc/hostname") == f"{name}\n"


def test_network_of_another_container(watched: Cli, lab: Lab):
    """--network container:X shares X's namespace and name files; X's published port reaches who listens there."""
    with watched.container("-p", "8080:80", command=SLEEP, word="pod") as pod:
        refused(lab.remote, HOST, 8080)
        with watched.container("--network", f"container:{pod}", word="member") as member:
            assert answers(lab.remote, HOST, 8080) == PAGE
            for command in (("readlink", "/proc/1/ns/net"), ("cat", "/etc/hosts"), ("cat", "/etc/resolv.conf")):
                assert watched.execute(pod, *command) == watched.execute(member, *command)
        refused(lab.remote, HOST, 8080)
        assert watched.entry(pod)["mappings"] == [active(80, 8080)]


@pytest.mark.parametrize("network", ["none", "container:other"])
def test_ports_without_a_network_of_its_own(ctrport: Cli, network: str):
    """-p with a network that is not the container's own is an error of usage, and nothing is made."""
    before = ctrport.everything()
    result = ctrport("run", "-d", "--network", network, "-p", "8080:80", ctrport.containerd.image)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"-p needs a network of the container's own, not --network {network}" in result.stderr
    assert ctrport.everything() == before


def test_containers_reach_the_outside(watched: Cli, lab: Lab):
    """A container talks to a remote machine, over IPv4 and IPv6, with the host's address as its source."""
    with watched.container(command=SLEEP) as name:
        inside = watched.inside(name)
        with serve(lab.remote, 9000), serve(lab.remote, 9000, family=6):
            assert ask(inside, REMOTE, 9000).peer[0] == HOST
            assert ask(inside, "2001:db8::2", 9000).peer[0] == HOST6
        # And the other way there is no way in but a published port.
        assert isinstance(ask(lab.remote, FIRST, 80, timeout=0.3), Failure)


# ---------------------------------------------------------------------------------------- inside a container


def test_names_inside(ctrport: Cli):
    """hosts, resolv.conf and hostname inside are its own; --hostname, --dns and --add-host fill them."""
    options = ("--hostname", "frontend", "--dns", "192.0.2.53", "--add-host", "db:192.0.2.7")
    with ctrport.container(*options, command=SLEEP) as name:
        addresses = ctrport.json("ps")["containers"][0]["addresses"] or [FIRST]
        assert ctrport.execute(name, "hostname") == "frontend\n"
        assert ctrport.execute(name, "cat", "/etc/hostname") == "frontend\n"
        assert ctrport.execute(name, "cat", "/etc/resolv.conf") == "nameserver 192.0.2.53\n"
        hosts = [line.split("\t") for line in ctrport.execute(name, "cat", "/etc/hosts").splitlines()]
        assert hosts[0] == ["127.0.0.1", "localhost"]
        assert [FIRST, "frontend"] in hosts
        assert ["192.0.2.7", "db"] in hosts
        assert addresses[0] == FIRST
    with ctrport.container(command=SLEEP) as name:
        assert ctrport.execute(name, "hostname") == f"{name}\n"
        loopback = [
            line for line in ctrport.execute(name, "cat", "/etc/resolv.conf").splitlines() if "127." in line
        ]
        assert loopback == []


def test_environment_mounts_user_and_directory(program: Cli, tmp_path: Path):
    """-e, --env-file, -v, --mount, -w and -u are what the program inside sees."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "in").write_text("from the host\n")
    env_file = tmp_path / "env"
    env_file.write_text("# a comment\nCOLOUR=green\nSHAPE=round\n")
    script = (
        'echo "$COLOUR $SHAPE $(id -u):$(id -g) $(pwd)"; cat /data/in; echo back > /data/out; '
        "echo x > /fixed/in || echo read-only"
    )
    name = program.containerd.unique("options")
    result = program(
        *("run", "--rm", "--name", name, "-e", "SHAPE=square", "--env-file", env_file),
        *("-v", f"{shared}:/data", "--mount", f"type=bind,source={shared},target=/fixed,readonly"),
        *("-w", "/tmp", "-u", "65534:1000", program.containerd.image, "sh", "-c", script),  # noqa: S108 - inside
    )
    assert result.stdout.splitlines() == ["green square 65534:1000 /tmp", "from the host", "read-only"]
    assert result.returncode == 0
    assert (shared / "out").read_text() == "back\n"


def test_entrypoint(program: Cli, tmp_path: Path):
    """--entrypoint replaces the image's, and the image's command goes with it; without it both are kept."""
    reference = "docker.io/library/entry:latest"
    archive = busybox_image(tmp_path / "i.tar", reference, entrypoint=["echo", "image"], cmd=["command"])
    program.containerd.import_image(archive)

    def said(*arguments: str) -> str:
        name = program.containerd.unique("entry")
        return program("run", "--rm", "--name", name, *arguments, check=True).stdout

    assert said("entry") == "image command\n"
    assert said("entry", "mine") == "image mine\n"
    assert said("--entrypoint", "/bin/echo", "entry", "mine") == "mine\n"
    assert said("--entrypoint", "/bin/echo", "entry") == "\n"
    assert said("--entrypoint", "", "entry", "echo", "plain") == "plain\n"
    program.containerd.ctr("images", "delete", reference)


def test_limits_and_labels(ctrport: Cli):
    """--read-only, -m, --cpus, --label, --annotation and --cap-add stand in the record and bind the container."""
    options = (
        *("--read-only", "-m", "64m", "--cpus", "0.5", "--label", "tier=front"),
        *("--annotation", "example.org/owner=me", "--cap-add", "net_admin"),
    )
    with ctrport.container(*options, command=SLEEP) as name:
        spec = ctrport.spec(name)
        resources = spec["linux"]["resources"]
        assert resources["memory"]["limit"] == 64 << 20
        assert (resources["cpu"]["quota"], resources["cpu"]["period"]) == (50_000, 100_000)
        assert spec["root"]["readonly"] is True
        assert "CAP_NET_ADMIN" in spec["process"]["capabilities"]["effective"]
        assert spec["annotations"]["example.org/owner"] == "me"
        labels = json.loads(ctrport.containerd.ctr("containers", "info", name))["Labels"]
        assert labels["tier"] == "front"
        assert "read-only" in ctrport.execute(name, "sh", "-c", "touch /x 2>&1 || true").lower()
        ctrport.containerd.ctr("tasks", "exec", "--exec-id", "raise", name, "ip", "link", "set", "lo", "up")
        group = spec["linux"]["cgroupsPath"]
        versions = (f"memory{group}/memory.limit_in_bytes", f"{group[1:]}/memory.max")  # 1 and 2
        limits = [
            path.read_text().strip() for path in map(Path("/sys/fs/cgroup").joinpath, versions) if path.exists()
        ]
        assert limits == [str(64 << 20)]


def test_names(ctrport: Cli):
    """A container without --name gets one from its image; a name that containerd would not take is refused."""
    made = ctrport("run", "-d", ctrport.containerd.image, *SLEEP, check=True).stdout.strip()
    assert re.fullmatch(r"web-[0-9a-f]{4}", made)
    assert [entry["id"] for entry in ctrport.json("ps")["containers"]] == [made]
    assert ctrport("rm", "-f", made).returncode == 0
    for name in ("-x", "a b", "a/b", "ü", "a" * 77, "x;reboot", "a..b"):
        result = ctrport("run", "-d", f"--name={name}", ctrport.containerd.image)
        assert (result.returncode, ascii(name) in result.stderr) == (2, True), name


def test_an_address_of_choice(ctrport: Cli, lab: Lab):
    """--ip gives that address; one that is taken or not of the network is refused, and nothing is made."""
    with ctrport.container("-p", "8080:80", word="first") as first:
        before = ctrport.everything()
        for address, code, said in (
            ("198.51.100.7", 125, "198.51.100.7"),
            (FIRST, 125, first),
            ("10.208.0.1", 125, "10.208.0.1"),
            ("fd00::7", 2, "fd00::7"),
        ):
            name = ctrport.containerd.unique("late")
            result = ctrport("run", "-d", "--name", name, "--ip", address, ctrport.containerd.image)
            assert (result.returncode in (code, 2), said in result.stderr) == (True, True), result
            assert ctrport.everything() == before
        with ctrport.container("--ip", "10.208.7.9", "-p", "8081:80") as name:
            assert ctrport.entry(name)["addresses"][0] == "10.208.7.9"
            assert answers(lab.remote, HOST, 8081) == PAGE


def test_a_program_can_serve_low_ports_without_root(ctrport: Cli, lab: Lab):
    """As in Docker, a program that is not root may listen on port 80 of its container."""
    with ctrport.container("-p", "8080:80", "-u", "65534"):
        assert answers(lab.remote, HOST, 8080) == PAGE


def test_the_host_can_listen_again(ctrport: Cli, lab: Lab):
    """After rm a program of the host gets the port, and its clients reach it."""
    with ctrport.container("-p", "8080:80"):
        answers(lab.remote, HOST, 8080)
    with serve(lab.host, 8080, name="host program"):
        assert ask(lab.remote, HOST, 8080).name == "host program"
    assert socket.gethostname()
