"""The images and the containerd that the other end-to-end tests rest on, with nothing of ours in between."""

from __future__ import annotations

import hashlib
from pathlib import Path

from containerd_instance import Containerd, LabContainerd
from images import busybox_image, redis_image, web_image
from lab import REFUSED, Lab, Netns, ask, exchange, http_get, machine_state, serve, until


def run(containerd: LabContainerd, image: str, name: str) -> tuple[str, Netns]:
    """Start a container in a namespace that hangs on a bridge of the host; give its id and the namespace."""
    container = containerd.unique(name)
    bridge = containerd.lab.bridge("br0", "198.51.100.1/24")
    ns = containerd.lab.container_like(name, bridge, "198.51.100.2/24", gateway4="198.51.100.1")
    containerd.ctr("run", "-d", "--with-ns", f"network:{ns.path}", image, container)
    return container, ns


def remove(containerd: LabContainerd, container: str, ns: Netns) -> None:
    containerd.ctr("tasks", "delete", "--force", container)
    containerd.ctr("containers", "delete", container)
    ns.close()


def alive(pid: int) -> bool:
    """Tell a running process from one that is gone, or dead and not yet collected by its parent."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and path.read_bytes() != b""


def test_the_web_image_serves(containerd: LabContainerd):
    """The web image serves a page and tells a client its address."""
    container, ns = run(containerd, containerd.image, "web")
    host = containerd.lab.host
    until(lambda: http_get(host, "198.51.100.2", 80) is not REFUSED)
    assert http_get(host, "198.51.100.2", 80) == "It works!\n"
    assert "198.51.100.1" in str(http_get(host, "198.51.100.2", 80, "/cgi-bin/whoami"))
    assert containerd.ctr("tasks", "exec", "--exec-id", "x", container, "sh", "-c", "id -u") == "0\n"
    remove(containerd, container, ns)


def test_the_redis_image_answers(containerd: LabContainerd):
    """The Redis image's own command starts a server that stores and gives."""
    container, ns = run(containerd, containerd.redis_image, "redis")
    host = containerd.lab.host
    until(lambda: exchange(host, "198.51.100.2", 6379, b"PING\r\n") == b"+PONG\r\n")
    assert exchange(host, "198.51.100.2", 6379, b"SET k v\r\n") == b"+OK\r\n"
    assert host.run("redis-cli", "-h", "198.51.100.2", "GET", "k").stdout == "v\n"
    remove(containerd, container, ns)


def test_a_container_s_own_namespace_can_be_served_in(containerd: LabContainerd):
    """A server of ours can be started in the namespace of a container that somebody else made."""
    container = containerd.unique("own")
    containerd.ctr("run", "-d", containerd.image, container, "sleep", "60")
    pid = containerd.ctr("tasks", "list").splitlines()[1].split()[1]
    with Netns.at(f"/proc/{pid}/ns/net", "own") as ns:
        containerd.lab.host.add_veth(
            ns, "veth0", "eth0", addresses=("198.51.100.1/24",), peer_addresses=("198.51.100.2/24",)
        )
        serve(ns, 5353, "udp")
        assert ask(containerd.lab.host, "198.51.100.2", 5353, "udp").name == "own"
    containerd.ctr("tasks", "delete", "--force", container)
    containerd.ctr("containers", "delete", container)


def test_a_restart_of_containerd_keeps_containers(containerd: LabContainerd):
    """A crashed containerd comes back with the same socket and its containers still running."""
    container = containerd.unique("survivor")
    containerd.ctr("run", "-d", containerd.image, container, "sleep", "60")
    before = containerd.pid
    containerd.restart()
    assert containerd.pid != before
    assert f"default: task {container}" in containerd.leftovers()
    containerd.ctr("tasks", "delete", "--force", container)
    containerd.ctr("containers", "delete", container)
    assert containerd.leftovers() == []


def test_stopping_an_instance_leaves_nothing(tmp_path: Path):
    """An instance stopped with containers running takes its shims, mounts, sockets and files along."""
    before = machine_state()
    with Lab() as lab, Containerd(lab.host) as instance:
        instance.import_image(busybox_image(tmp_path / "i.tar", "example.org/b:1", cmd=["sleep", "60"]))
        container = instance.unique("left")
        instance.ctr("-n", "default", "run", "-d", "example.org/b:1", container)
        directory = instance.directory
        assert f"{directory}/" in machine_state()
        shims = [shim.pid for shim in instance._shims()]
        assert len(shims) == 1
        sockets = [Path(each.removeprefix("unix://")) for each in instance._shim_sockets()]
        assert [each.is_socket() for each in sockets] == [True]
    after = machine_state()
    assert not directory.exists()
    assert str(directory) not in after
    assert not Path(f"/run/containerd/runc/default/{container}").exists()
    assert not any(alive(pid) for pid in shims)
    assert not any(each.exists() for each in sockets)
    assert before.partition("[namespaces]")[0] == after.partition("[namespaces]")[0]


def test_images_are_reproducible(tmp_path: Path):
    """The same inputs give the same bytes, and every option reaches the image's configuration."""
    for build in (web_image, redis_image):
        digests = {
            hashlib.sha256(build(tmp_path / f"{n}.tar", "example.org/a:1").read_bytes()).digest() for n in (1, 2)
        }
        assert len(digests) == 1


def test_image_options_reach_the_container(containerd: LabContainerd, tmp_path: Path):
    """Entrypoint, command, environment and user of an image are what its container runs with."""
    archive = busybox_image(
        tmp_path / "i.tar",
        "example.org/options:1",
        entrypoint=["sh", "-c"],
        cmd=['echo "$COLOUR $(id -u)"'],
        env={"COLOUR": "green"},
        exposed=["53/udp"],
        labels={"ctrport.io/publish": "8080:80"},
        user="65534",
    )
    containerd.import_image(archive)
    container = containerd.unique("options")
    assert containerd.ctr("run", "--rm", "example.org/options:1", container) == "green 65534\n"
    containerd.ctr("images", "delete", "example.org/options:1")
