"""`publish` and `unpublish`: ports of running containers, whoever made them, changed without a restart."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ctrport import control
from ctrport.config import Settings
from ctrport.containerd.client import Client
from ctrport.model.workload import Key
from images import busybox_image
from lab import REFUSED, Failure, connect, http_get, serve, until
from plain import CNI_ADDRESS, task_pid, with_cni, with_ns

if TYPE_CHECKING:
    from pathlib import Path

    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"
SLEEP = ("sleep", "600")
EXTENSION = "ctrport.io/publish"
UNWATCHED = (
    "ctrport: warning: no watcher runs: this is not kept up when containers or firewalls change "
    "(systemctl start ctrport)\n"
)


def page(lab: Lab, port: int) -> str | Failure:
    return http_get(lab.remote, HOST, port)


def answers(lab: Lab, *ports: int, within: float = 5.0) -> None:
    for port in ports:
        until(lambda port=port: page(lab, port) == PAGE, within=within, what=f"the page at {port}")


def listens(lab: Lab, address: str) -> None:
    """Wait until the program inside listens, which is not ours to see to."""
    until(lambda: http_get(lab.host, address, 80) == PAGE, what=f"the page inside at {address}")


def plain(ctrport: Cli, lab: Lab, *options: str, number: int = 2) -> str:
    """Start a container with plain ctr on somebody else's bridge, and wait until it listens."""
    name = with_ns(ctrport, lab, *options, number=number)
    listens(lab, f"198.51.100.{number}")
    return name


def cni(ctrport: Cli, lab: Lab) -> str:
    """Start a container with `ctr run --cni`, and wait until it listens."""
    name = with_cni(ctrport, lab)
    listens(lab, CNI_ADDRESS)
    return name


def ours(ctrport: Cli, lab: Lab, *options: str) -> str:
    name = ctrport.containerd.unique("web")
    ctrport("run", "-d", "--name", name, *options, ctrport.containerd.image, check=True)
    listens(lab, ctrport.json("ps")["containers"][-1]["addresses"][0] if options else "10.208.0.2")
    return name


def stored(ctrport: Cli, name: str) -> Any:
    """Give what the extension of a container holds, None for nothing."""

    async def read() -> bytes | None:
        async with Client(ctrport.containerd.address) as client:
            return await client.extension(Key("default", name), EXTENSION)

    value = asyncio.run(read())
    return None if value is None else json.loads(value)


def store(ctrport: Cli, name: str, value: bytes) -> None:
    async def write() -> None:
        async with Client(ctrport.containerd.address) as client:
            await client.set_extension(Key("default", name), EXTENSION, EXTENSION, value)

    asyncio.run(write())


def states(ctrport: Cli, name: str) -> list[tuple[int | None, str, str]]:
    return [(m["host_port"], m["state"], m["reason"]) for m in ctrport.entry(name)["mappings"]]


# ------------------------------------------------------------------------------------------------ on and off


@pytest.mark.parametrize("kind", ["ours", "with-ns", "cni"])
def test_a_remote_peer_is_answered_when_publish_returns(program: Cli, lab: Lab, kind: str):
    """Whoever made the container: its port answers once `publish` returns and refuses once `unpublish` does."""
    start = {"ours": ours, "with-ns": plain, "cni": cni}[kind]
    name = start(program, lab)
    assert page(lab, 8080) is REFUSED
    result = program("publish", name, "8080:80", "127.0.0.1:8081:80")
    assert page(lab, 8080) == PAGE
    lines = ["80/tcp -> 0.0.0.0:8080", "80/tcp -> 127.0.0.1:8081", "80/tcp -> [::]:8080"]
    assert (result.returncode, result.stdout.splitlines()) == (0, lines if kind == "ours" else lines[:2])
    assert http_get(lab.host, "127.0.0.1", 8081) == PAGE
    assert program("port", name).stdout == result.stdout
    assert program("rules", "--diff").stdout == ""
    gone = program("unpublish", name, "8080:80")
    assert page(lab, 8080) is REFUSED
    assert (gone.returncode, gone.stdout) == (0, "8080:80/tcp\n")
    assert http_get(lab.host, "127.0.0.1", 8081) == PAGE
    assert program("unpublish", name, "--all").stdout == "127.0.0.1:8081:80/tcp\n"
    assert (states(program, name), stored(program, name)) == ([], None)
    program("rm", "-f", name, check=True)


def test_what_publish_prints(program: Cli, lab: Lab, request: pytest.FixtureRequest):
    """Mappings as `port` prints them, as JSON with the port that was chosen; without a watcher, a warning."""
    name = ours(program, lab)
    alone = "alone" in request.node.name
    said = program("publish", name, "8080-8081:80-81", "5353:53/udp")
    assert (said.stdout.splitlines(), said.stderr) == (
        [
            "53/udp -> 0.0.0.0:5353",
            "53/udp -> [::]:5353",
            "80/tcp -> 0.0.0.0:8080",
            "80/tcp -> [::]:8080",
            "81/tcp -> 0.0.0.0:8081",
            "81/tcp -> [::]:8081",
        ],
        UNWATCHED if alone else "",
    )
    shape = {"host_ip": None, "host_port_pool": None, "protocol": "tcp", "state": "active", "reason": ""}
    pool = {**shape, "host_port": 9000, "host_port_pool": [9000, 9001], "container_port": 80}
    assert program.json("publish", name, "9000-9001:80") == {
        "version": 1,
        "watched": not alone,
        "running": True,
        "mappings": [pool],
    }
    removed = program.json("unpublish", name, "8081:81", "5353:53/udp")
    assert (removed["removed"], [m["host_port"] for m in removed["mappings"]]) == (
        ["8081:81/tcp", "5353:53/udp"],
        [8080, 9000],
    )
    program("unpublish", name, "9000:80", check=True)  # by the port that it was given
    assert [port for port, _, _ in states(program, name)] == [8080]
    program("rm", "-f", name, check=True)


def test_publishing_twice(watched: Cli, lab: Lab):
    """What is published already is told again, and nothing is written; withdrawn and published again it is back."""
    name = ours(watched, lab, "-p", "8080:80")
    assert watched("publish", name, "8080:80").stdout == watched("port", name).stdout
    assert stored(watched, name) is None
    watched("publish", name, "8081:80", check=True)
    before = stored(watched, name)
    watched("publish", name, "8081:80", "8080:80", check=True)
    assert stored(watched, name) == before
    watched("unpublish", name, "--all", check=True)
    assert stored(watched, name) == {"version": 1, "added": [], "removed": "8080:80/tcp"}
    assert (page(lab, 8080), page(lab, 8081)) == (REFUSED, REFUSED)
    watched("publish", name, "8080:80", check=True)
    assert page(lab, 8080) == PAGE
    watched("rm", "-f", name, check=True)


def test_each_change_is_one_update(watched: Cli, watcher: Watcher, lab: Lab):
    """A change makes one update of the container in containerd, and the watcher answers with none of its own."""
    name = ours(watched, lab)
    path = watched.directory / "events"
    with path.open("wb") as output:
        events = lab.host.popen("ctr", "--address", watched.containerd.address, "events", stdout=output)

    def updates() -> int:
        return path.read_text().count("/containers/update")

    def subscribed() -> bool:
        watched.containerd.ctr("containers", "label", name, "of=the test's own")
        return updates() > 0

    try:
        until(subscribed, what="an event of the test's own")
        time.sleep(0.5)  # for more of those
        mark, before = len(watcher.log), updates()
        watched("publish", name, "8080:80", check=True)
        watched("unpublish", name, "8080:80", check=True)
        until(lambda: updates() >= before + 2, what="both updates")
        time.sleep(1.0)  # in which a third one would come
    finally:
        events.kill()
        events.wait(5)
    assert updates() == before + 2
    path.unlink()
    changes = [line.split(maxsplit=3)[-1].split()[0] for line in watcher.log[mark:].splitlines()]
    assert changes == ["published", "unpublished"]
    watched("rm", "-f", name, check=True)


# ------------------------------------------------------------------------------------------------- survival


def test_what_survives(ctrport: Cli, watcher: Watcher, lab: Lab):
    """Changes outlive kill -9 of the watcher, a new containerd and a new task; what is withdrawn stays so."""
    name = ours(ctrport, lab, "--restart", "always", "-p", "8080:80", "-p", "8081:80")
    other = plain(ctrport, lab, "--annotation", "ctrport.io/publish=7000:80 7001:80")
    # Not with `ctr run`: the restart monitor, when it looks between the creation and the start, removes the task.
    ctrport.containerd.ctr("containers", "label", other, "containerd.io/restart.status=running")
    names = {name: (8080, 8081, 8082), other: (7000, 7001, 7002)}
    for each, (_, second, third) in names.items():
        ctrport("unpublish", each, f"{second}:80", check=True)
        ctrport("publish", each, f"{third}:80", check=True)

    def holds() -> None:
        for each, (first, second, third) in names.items():
            answers(lab, first, third, within=20)
            assert page(lab, second) is REFUSED
            assert states(ctrport, each) == [(first, "active", ""), (third, "active", "")]
        assert ctrport("rules", "--diff").stdout == ""

    holds()
    watcher.kill()
    assert [page(lab, port) for port in (8080, 8081, 8082)] == [PAGE, REFUSED, PAGE]
    watcher.start()
    holds()
    ctrport.containerd.restart()
    until(lambda: ctrport("sync").returncode == 0, within=15, what="the watcher's next pass")
    holds()
    for each in names:
        pid = task_pid(ctrport, each)
        os.kill(pid, signal.SIGKILL)
        until(lambda each=each, pid=pid: task_pid(ctrport, each) not in (0, pid), within=20, what="the new task")
    holds()
    watcher.restart()
    holds()
    ctrport("rm", "-f", *names, check=True)


def test_a_stopped_container(program: Cli, lab: Lab):
    """On a container that does not run the change is stored, said to wait for the start, and there after it."""
    name = ours(program, lab, "-p", "8080:80")
    program("stop", "-t", "0", name, check=True)
    said = program("publish", name, "8081:80")
    assert (said.returncode, said.stdout) == (0, "")
    assert f"{name} does not run: its ports are published when it starts" in said.stderr
    assert program("unpublish", name, "8080:80").stdout == "8080:80/tcp\n"
    assert program("start", name).stdout == f"{name}\n"
    answers(lab, 8081)
    assert page(lab, 8080) is REFUSED
    program("rm", "-f", name, check=True)


def test_without_a_watcher_later(ctrport: Cli, lab: Lab):
    """What is published while no watcher runs is kept up by the one that starts next."""
    name = ours(ctrport, lab)
    said = ctrport("publish", name, "8080:80", "9000-9010:80")
    assert (said.returncode, said.stderr, page(lab, 8080)) == (0, UNWATCHED, PAGE)
    from program import Watcher  # noqa: PLC0415

    watcher = Watcher(ctrport)
    watcher.start()
    assert states(ctrport, name) == [(8080, "active", ""), (9000, "active", "")]
    assert page(lab, 9000) == PAGE
    ctrport("rm", "-f", name, check=True)
    assert watcher.terminate() == 0


# ------------------------------------------------------------------------------------------------- conflicts


def test_conflicts(program: Cli, lab: Lab):
    """A port that somebody holds is refused with the holder's name, whoever is older; nothing at all is changed."""
    old = ours(program, lab)
    with program.container("-p", "8080:80", word="holder") as holder, serve(lab.host, 7000) as server:
        answers(lab, 8080)
        before, mark = program.everything(), stored(program, old)
        for specs, said in (
            (("9000:80", "8080:80"), f"8080:80/tcp: 8080/tcp is held by container default/{holder}"),
            (("9000:80", "7000:80"), f"(pid {server.pid})"),
            (("203.0.113.9:9000:80",), "host IP 203.0.113.9 is not an address of this host"),
            (("8080-8080:80-80", "9000:80"), f"8080/tcp is held by container default/{holder}"),
        ):
            result = program("publish", old, *specs)
            assert (result.returncode, result.stdout, said in result.stderr) == (1, "", True), result
        assert (program.everything(), stored(program, old), mark) == (before, None, None)
        assert (page(lab, 8080), page(lab, 9000)) == (PAGE, REFUSED)
        program("publish", old, "9000:80", check=True)
        assert program("publish", old, "127.0.0.1:9000:81").returncode == 1  # its own mapping is in the way
        assert states(program, holder) == [(8080, "active", "")]
    program("publish", old, "8080:80", check=True)
    assert page(lab, 8080) == PAGE
    program("rm", "-f", old, check=True)


def test_policy(program: Cli, lab: Lab, request: pytest.FixtureRequest):
    """A port that the policy does not allow is refused with its reason, and so are those named with it."""
    rule = '[[policy.allow]]\ncontainerd_namespaces = ["default"]\nhost_ports = ["9000-9001"]\n'
    program.config.write_text(rule)
    if "watched" in request.node.name:
        request.getfixturevalue("watcher").restart()
    name = ours(program, lab)
    before = program.everything()
    result = program("publish", name, "9000:80", "8080:80")
    assert (result.returncode, "8080:80/tcp: policy: " in result.stderr) == (1, True), result
    assert "ctrport config show" in result.stderr
    assert (program.everything(), stored(program, name)) == (before, None)
    assert (page(lab, 8080), page(lab, 9000)) == (REFUSED, REFUSED)
    program("publish", name, "9000:80", check=True)
    assert page(lab, 9000) == PAGE
    program("rm", "-f", name, check=True)


def test_a_later_wish_takes_no_port(ctrport: Cli, watcher: Watcher, lab: Lab):
    """A port published live counts from then: no older wish loses its port to it, also after a restart."""
    old, young = plain(ctrport, lab), plain(ctrport, lab, number=3)
    ctrport("publish", young, "8080:80", check=True)
    assert ctrport("publish", old, "8080:80").returncode == 1
    ctrport("unpublish", young, "8080:80", check=True)
    ctrport("publish", old, "8080:80", check=True)
    ctrport("publish", young, "8081:80", check=True)
    holder = states(ctrport, old), states(ctrport, young)
    watcher.restart()
    assert (states(ctrport, old), states(ctrport, young)) == holder
    assert holder == ([(8080, "active", "")], [(8081, "active", "")])
    ctrport("rm", "-f", old, young, check=True)


def test_what_cannot_be_published(program: Cli, lab: Lab):
    """Bad words, no container, no network of its own: each an error with its reason, and nothing is changed."""
    with (
        program.container("--network", "none", command=SLEEP, word="none") as none,
        program.container("--network", "host", command=SLEEP, word="host") as host,
        program.container("-p", "8080:80") as web,
    ):
        answers(lab, 8080)
        before = program.everything()
        cases: tuple[tuple[int, str, tuple[str, ...]], ...] = (
            (1, "the container has no IP address", ("publish", none, "9000:80")),
            (1, "uses the host's network: its ports are the host's already", ("publish", host, "9000:80")),
            (1, "uses the host's network", ("unpublish", host, "--all")),
            (1, "no container nobody in namespace default", ("publish", "nobody", "9000:80")),
            (1, "no container nobody in namespace default", ("unpublish", "nobody", "9000:80")),
            (1, f"no container {web} in namespace other", ("-n", "other", "publish", web, "9000:80")),
            (2, "port spec '80800:80'", ("publish", web, "9000:80", "80800:80")),
            (2, "asked for twice", ("publish", web, "9000:80", "9000:81")),
            (2, "Missing argument", ("publish", web)),
            (2, "the container 'a b'", ("publish", "a b", "9000:80")),
            (1, "there is no pod a/b", ("publish", "a/b", "9000:80")),
            (2, "port spec 'x'", ("unpublish", web, "x")),
            (2, "name the ports, or say --all", ("unpublish", web)),
            (2, "name the ports, or say --all", ("unpublish", web, "8080:80", "--all")),
            (
                1,
                f"container {web} does not publish 8081:80/tcp 53/udp",
                ("unpublish", web, "8080:80", "8081:80", "53/udp"),
            ),
            (1, "it publishes 8080:80/tcp", ("unpublish", web, "80")),
            (1, "does not publish 8080-8081:80/tcp", ("unpublish", web, "8080-8081:80")),
        )
        for code, said, arguments in cases:
            result = program(*arguments)
            assert (result.returncode, result.stdout, said in result.stderr) == (code, "", True), (
                arguments,
                result,
            )
        assert program.everything() == before
        assert [stored(program, name) for name in (none, host, web)] == [None] * 3
        assert page(lab, 8080) == PAGE


def test_a_malformed_extension(watched: Cli, watcher: Watcher, lab: Lab):
    """What cannot be read is told in `ps` and the log and harms nobody; the next change writes it anew."""
    name = ours(watched, lab, "-p", "8080:80")
    with watched.container("-p", "9000:80", word="other"):
        for value in (
            b"\xff\x00",
            b'{"version": 2, "added": []}',
            b"[" * 100_000,
            b'{"version":1,"added":[],"removed":"\\u001b[2J"}',
        ):
            store(watched, name, value)
            until(lambda: any("cannot be read" in p for p in watched.entry(name)["problems"]), what="the problem")
            shown = watched("ps").stdout
            assert "refused: the changes of publish and unpublish in extension ctrport.io/publish cannot" in shown
            assert "\x1b" not in shown + watcher.log
            answers(lab, 8080, 9000)
        watched("publish", name, "8081:80", check=True)
        assert (page(lab, 8080), page(lab, 8081)) == (PAGE, PAGE)
        assert (stored(watched, name)["version"], watched.entry(name)["problems"]) == (1, [])
    watched("rm", "-f", name, check=True)


def test_size(watched: Cli, lab: Lab):
    """10,000 ports at once are published in short and withdrawn; what is too large for containerd is refused."""
    name = ours(watched, lab)
    watched("publish", name, "20000-29999:20000-29999", check=True)
    assert len(states(watched, name)) == 10_000
    assert stored(watched, name)["added"][0]["publish"] == "20000-29999:20000-29999/tcp"
    scattered = [f"127.0.0.1:{port}:{60000 - port}" for port in range(1000, 15001)]
    many = watched("publish", name, *scattered)
    assert (many.returncode, "is the most" in many.stderr) == (2, True), many.stderr
    assert len(states(watched, name)) == 10_000
    watched("unpublish", name, "--all", check=True)
    assert states(watched, name) == []
    watched("rm", "-f", name, check=True)


def test_all_exposed_ports(program: Cli, lab: Lab, tmp_path: Path, request: pytest.FixtureRequest):
    """`all` publishes what the image exposes and no spec names; a watcher remembers it of one that is gone."""
    reference = "docker.io/library/exposing:latest"
    archive = busybox_image(
        tmp_path / "i.tar", reference, cmd=["sleep", "600"], exposed=["80/tcp", "53/udp", "443"]
    )
    program.containerd.import_image(archive)
    if "br0" not in lab.host.run("ip", "-o", "link").stdout:
        lab.bridge("br0", "198.51.100.1/24")
    ns = lab.container_like("plain", "br0", "198.51.100.2/24", gateway4="198.51.100.1")
    name = program.containerd.unique("all")
    options = ("--annotation", "ctrport.io/publish=8080:80 all", "--with-ns", f"network:{ns.path}")
    program.containerd.ctr("run", "-d", *options, reference, name)
    program("sync", check=True)
    found = program.json("port", name)["mappings"]
    assert [(m["container_port"], m["protocol"]) for m in found] == [(80, "tcp"), (53, "udp"), (443, "tcp")]
    assert found[0]["host_port"] == 8080
    assert all(32768 <= m["host_port"] <= 60999 for m in found[1:])
    assert program("unpublish", name, "443").stdout == "443/tcp\n"
    program.containerd.ctr("images", "delete", reference)
    program("sync", check=True)
    problems = program.entry(name)["problems"]
    shown = [(m["container_port"], m["protocol"]) for m in program.json("port", name)["mappings"]]
    if "watched" in request.node.name:
        assert (problems, shown) == ([], [(80, "tcp"), (53, "udp")])
    else:
        unknown = f"port spec 'all': image '{reference}' is not here to say what it exposes"
        assert (problems, shown) == ([unknown], [(80, "tcp")])
    program("rm", "-f", name, check=True)


# --------------------------------------------------------------------------------------------- at the same time


def test_a_running_connection_loses_nothing(watched: Cli, lab: Lab):
    """Under 100 changes a connection of another mapping carries data without a pause and loses no byte."""
    name = ours(watched, lab, "-p", "9000:9000")
    inside = watched.inside(name)
    sink = (
        "import hashlib,socket,sys\ns=socket.create_server(('',9000))\nprint('ready',flush=True)\nc,_=s.accept()\n"
    )
    sink += (
        "h=hashlib.sha256();n=0\nwhile d:=c.recv(65536):\n h.update(d);n+=len(d)\nprint(n,h.hexdigest(),flush=True)"
    )
    server = inside.popen("/usr/bin/python3", "-c", sink, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    sent, stop, block = hashlib.sha256(), threading.Event(), os.urandom(32768)
    longest, count = [0.0], [0]

    with connect(lab.remote, HOST, 9000, timeout=10) as connection:

        def send() -> None:
            while not stop.is_set():
                begun = time.monotonic()
                piece = count[0].to_bytes(8) + block
                connection.socket.sendall(piece)
                sent.update(piece)
                count[0] += len(piece)
                longest[0] = max(longest[0], time.monotonic() - begun)
                time.sleep(0.002)

        async def changes() -> None:
            """Ask as the command does, without 100 starts of Python."""
            settings = Settings(address=watched.containerd.address, root=watched.root, state=watched.state)
            async with control.connect(settings) as link:
                assert link is not None
                for port in range(8000, 8050):
                    request = {"container": ["default", name], "specs": f"{port}:80"}
                    await link.call("publish", **request)
                    assert await asyncio.to_thread(page, lab, port) == PAGE
                    await link.call("unpublish", **request)
                    assert await asyncio.to_thread(page, lab, port) is REFUSED

        sender = threading.Thread(target=send)
        sender.start()
        try:
            asyncio.run(changes())
        finally:
            stop.set()
            sender.join(20)
    said, _ = server.communicate(timeout=20)
    assert said.split() == [str(count[0]), sent.hexdigest()]
    print(f"{count[0]} bytes, the longest wait {longest[0]:.3f} s")  # noqa: T201 - a measurement
    assert states(watched, name) == [(9000, "active", "")]
    watched("rm", "-f", name, check=True)


def test_a_connection_of_a_withdrawn_mapping(watched: Cli, lab: Lab):
    """A TCP connection lives on when its mapping is withdrawn, as in Docker; a new one is refused."""
    name = ours(watched, lab)
    with serve(watched.inside(name), 7000, name="inside"):
        watched("publish", name, "7000:7000", check=True)
        with connect(lab.remote, HOST, 7000) as connection:
            assert connection.ask().name == "inside"
            watched("unpublish", name, "7000:7000", check=True)
            assert connection.echo(b"still here") == b"still here"
            with pytest.raises(ConnectionRefusedError):
                connect(lab.remote, HOST, 7000)
    watched("rm", "-f", name, check=True)


def test_at_the_same_time(program: Cli, lab: Lab):
    """Changes of one container at the same time are all kept."""
    name = ours(program, lab)
    ports = range(8080, 8086)
    rivals = [program.popen("publish", name, f"{port}:80", stdout=subprocess.DEVNULL) for port in ports]
    assert [rival.wait(60) for rival in rivals] == [0] * len(ports)
    assert sorted(port for port, _, _ in states(program, name)) == list(ports)
    answers(lab, *ports)
    program("rm", "-f", name, check=True)


def test_beside_the_end_of_a_container(program: Cli, lab: Lab):
    """Whenever a container is removed under a `publish`, it succeeds or says so, and nothing is left."""
    with program.container(word="kept", command=SLEEP):
        program("publish", program.json("ps")["containers"][0]["id"], "7000:80", check=True)
        before = program.everything()
        for step in range(5):
            name = program.containerd.unique("web")
            program("run", "-d", "--name", name, program.containerd.image, check=True)
            rivals = [
                program.popen(
                    "publish", name, "8080:80", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            ]
            time.sleep(0.06 * step)
            rivals.append(
                program.popen("rm", "-f", name, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            )
            said = [rival.communicate(timeout=30)[1] for rival in rivals]
            assert (rivals[1].returncode, rivals[0].returncode in (0, 1)) == (0, True), said
            assert page(lab, 8080) is REFUSED
            until(lambda: program.everything() == before, what="nothing left")
