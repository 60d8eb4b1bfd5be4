"""Who is measured: ctrport, and what users would take instead. Each is run on a host (a lab) of its own.

Every one of them starts the same program, busybox's httpd, and is given time until it answers a client. What one of
them cannot do here is told (`Missing`), never guessed.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench.cni import Chain
from bench.podman import Podman
from containerd_instance import LabContainerd
from docker_instance import Docker
from lab import Lab, Netns, http_get
from program import Cli, Watcher

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable

HOST = "192.0.2.1"
FIRST = 8000  # host port of container port 80, where httpd listens
PATIENCE = 20.0
HTTPD = ("/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www")


class Missing(Exception):  # noqa: N818 - not an error: a peer that cannot run here
    """Why something cannot be measured here."""


class Peer(Protocol):
    """One way to run a container."""

    name: str

    def run(self, ports: int) -> str:
        """Start a container with so many published ports; gives its name once the command has returned."""

    def answers(self) -> bool:
        """Try once whether its first port answers."""

    def remove(self, container: str) -> None:
        """Remove it."""


def publish(ports: int) -> str:
    """Give `-p` for so many ports, of which the first is httpd's."""
    return f"{FIRST}:80" if ports == 1 else f"{FIRST}-{FIRST + ports - 1}:80-{79 + ports}"


def until_it_answers(peer: Peer, ports: int) -> tuple[str, float]:
    """Run a container and give its name, and the seconds until a client had its answer."""
    begun = time.perf_counter()
    container = peer.run(ports)
    while not peer.answers():
        if time.perf_counter() - begun > PATIENCE + ports:
            raise Missing(f"{container} never answered")
        time.sleep(0.001)
    return container, time.perf_counter() - begun


class Ours:
    """ctrport with its watcher, on a containerd that bare ctr uses too."""

    name = "ctrport"

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.lab = stack.enter_context(Lab(forwarding=False))
        self.containerd = stack.enter_context(LabContainerd(self.lab))
        stack.callback(self.containerd.remove_all)
        self.cli = Cli(self.containerd, Path(tempfile.mkdtemp(prefix="ctrport-bench-")))
        stack.callback(self.cli.close)
        stack.callback(lambda: self.cli("flush"))
        self.watcher = Watcher(self.cli)
        self.watcher.start(within=60)
        stack.callback(self.watcher.kill)

    def run(self, ports: int) -> str:
        name = self.containerd.unique("ours")
        self.cli("run", "-d", "--name", name, "-p", publish(ports), self.containerd.image, check=True, timeout=120)
        return name

    def answers(self) -> bool:
        return isinstance(http_get(self.lab.remote, HOST, FIRST), str)

    def remove(self, container: str) -> None:
        self.cli("rm", "-f", container, check=True)


class Bare:
    """`ctr run -d` and nothing else: its network namespace was made before, and answers by its own address."""

    name = "bare ctr"

    def __init__(self, containerd: LabContainerd) -> None:
        self._containerd = containerd
        lab = containerd.lab
        lab.bridge("br-bare", "198.51.100.1/24")
        self._netns = lab.container_like("bare", "br-bare", "198.51.100.2/24", gateway4="198.51.100.1")

    def run(self, ports: int) -> str:  # noqa: ARG002 - it has none
        name = self._containerd.unique("bare")
        with_ns = ("--with-ns", f"network:{self._netns.path}")
        self._containerd.ctr("run", "-d", *with_ns, self._containerd.image, name)
        return name

    def answers(self) -> bool:
        return isinstance(http_get(self._containerd.lab.host, "198.51.100.2", 80), str)

    def remove(self, container: str) -> None:
        remove(self._containerd, container)


class CniCtr:
    """`ctr run -d` on a network by CNI's bridge, portmap and firewall plugins, as nerdctl calls them."""

    name = "ctr + CNI"

    def __init__(self, stack: contextlib.ExitStack, containerd: LabContainerd) -> None:
        self._containerd = containerd
        self.lab = stack.enter_context(Lab())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctrport-bench-")))
        self.chain = Chain(self.lab.host, directory)
        self._ports: dict[str, tuple[Netns, int]] = {}
        stack.callback(lambda: [self.remove(name) for name in list(self._ports)])

    def run(self, ports: int) -> str:
        name = self._containerd.unique("cni")
        netns = Netns(name[-12:])
        self._ports[name] = (netns, ports)
        self.chain.add(name, netns, FIRST, ports)
        self._containerd.ctr("run", "-d", "--with-ns", f"network:{netns.path}", self._containerd.image, name)
        return name

    def answers(self) -> bool:
        return isinstance(http_get(self.lab.remote, HOST, FIRST), str)

    def remove(self, container: str) -> None:
        netns, ports = self._ports.pop(container)
        remove(self._containerd, container)
        self.chain.delete(container, netns, FIRST, ports)
        netns.close()


def remove(containerd: LabContainerd, container: str) -> None:
    """Remove a container of plain ctr."""
    containerd.ctr("tasks", "delete", "--force", container, check=False)
    containerd.ctr("containers", "delete", container)


class Dockers:
    """`docker run -d -p`."""

    name = "docker"

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.lab = stack.enter_context(Lab())
        self.docker = stack.enter_context(Docker(self.lab.host, storage_driver="overlay2"))

    def run(self, ports: int) -> str:
        words = ("run", "--detach", "--publish", publish(ports), "web", *HTTPD)
        command = self.lab.host.run("docker", "--host", self.docker.address, *words, timeout=PATIENCE + ports)
        return command.stdout.strip()

    def answers(self) -> bool:
        return isinstance(http_get(self.lab.remote, HOST, FIRST), str)

    def remove(self, container: str) -> None:
        self.lab.host.run("docker", "--host", self.docker.address, "rm", "--force", container, timeout=300)


class Podmans:
    """`podman run -d -p`, with netavark."""

    name = "podman"

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.lab = stack.enter_context(Lab())
        self.podman = stack.enter_context(Podman(self.lab.host))

    def run(self, ports: int) -> str:
        words = ("run", "--detach", "--publish", publish(ports), "localhost/web", *HTTPD)
        return self.podman(*words, timeout=PATIENCE + ports).stdout.strip()

    def answers(self) -> bool:
        return isinstance(http_get(self.lab.remote, HOST, FIRST), str)

    def remove(self, container: str) -> None:
        self.podman("rm", "--force", "--time", "0", container, timeout=300)


class Cast:
    """The peers of one run of the benchmark: each is started when it is first wanted, or told to be missing."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._there: dict[str, Peer] = {}
        self.missing: dict[str, str] = {}

    def ours(self) -> Ours:
        if "ctrport" not in self._there:
            self._there["ctrport"] = Ours(self._stack)
        found = self._there["ctrport"]
        assert isinstance(found, Ours)
        return found

    def every(self) -> list[Peer]:
        """Give ours and all peers that can run here."""
        containerd = self.ours().containerd
        makers: dict[str, Callable[[], Peer]] = {
            "bare ctr": lambda: Bare(containerd),
            "ctr + CNI": lambda: CniCtr(self._stack, containerd),
            "docker": lambda: Dockers(self._stack),
            "podman": lambda: Podmans(self._stack),
        }
        for name, make in makers.items():
            self.get(name, make)
        return list(self._there.values())

    def docker(self) -> Dockers | None:
        found = self.get("docker", lambda: Dockers(self._stack))
        return found if isinstance(found, Dockers) else None

    def podman(self) -> Podmans | None:
        found = self.get("podman", lambda: Podmans(self._stack))
        return found if isinstance(found, Podmans) else None

    def get(self, name: str, make: Callable[[], Peer]) -> Peer | None:
        if name not in self._there and name not in self.missing:
            try:
                self._there[name] = make()
            except (Missing, AssertionError, OSError, subprocess.SubprocessError) as error:
                self.missing[name] = str(error).strip().splitlines()[-1][:120]
        return self._there.get(name)
