"""The stage of a soak: a host and a remote machine, a real containerd, a watcher, and places for containers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from containerd_instance import LabContainerd
from lab import DIRECTORY, Lab, Netns, until
from program import Cli, Watcher
from soak.answers import ECHO_PORT, UDP_PORT, Answerer, Line, Talker

if TYPE_CHECKING:
    from random import Random

HOST4, HOST6, SECOND4 = "192.0.2.1", "2001:db8::1", "192.0.2.10"
SLOTS = 10  # of these, PLAIN are for containers of plain ctr
PLAIN = 3
TALK_PORT = 5300  # of the UDP client that never falls silent
LINE_PORT = 7007  # of the connection that stays open
SHARED = (8090, 8091)  # ports that several containers want
STATE_SIZE = "256k"  # of the state directory, which a fault fills
NAMESPACE = "second"  # a second one of containerd, for the plain containers
PAGE = "mkdir -p /w; echo {name} >/w/index.html; exec httpd -f -p 80 -h /w"


@dataclasses.dataclass
class Slot:
    """A place for one container after the other. `intended` is what the plan believes, not what is."""

    number: int
    intended: str = "absent"  # running, stopped
    kind: str = "run"  # plain, rm, always
    name: str = ""
    made: bool = False  # whether the container came into being at all

    @property
    def plain(self) -> bool:
        return self.number >= SLOTS - PLAIN

    @property
    def namespace(self) -> str:
        return NAMESPACE if self.plain else "default"

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def base(self) -> int:
        """The first of ten ports that no other slot asks for."""
        return 8000 + 10 * self.number if self.number < 9 else 8100


class World:
    """Everything that a soak needs, and its end."""

    def __init__(self) -> None:
        self.published: dict[str, set[str]] = {}  # specs that `ctrport publish` has added, by container
        self.left_behind: list[str] = []  # containers that `ctrport run` has said it could not take back
        self.slots = [Slot(number) for number in range(SLOTS)]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.lab = stack.enter_context(Lab(forwarding=False))
            for ns in (self.lab.host, self.lab.remote):  # a refusal must be told every time, not once a second
                ns.sysctl("net/ipv4/icmp_ratelimit", 0)
                ns.sysctl("net/ipv6/icmp/ratelimit", 0)
            self.containerd = stack.enter_context(LabContainerd(self.lab))
            self.containerd.ctr("namespaces", "create", NAMESPACE)
            self.copy_image()
            stack.callback(self._remove_namespaces)
            directory = Path(tempfile.mkdtemp(prefix="ctrport-soak-"))
            self.cli = Cli(self.containerd, directory)
            stack.callback(self.cli.close)
            self.cli.state.mkdir()
            options = ("-t", "tmpfs", "-o", f"size={STATE_SIZE},mode=700", "ctrport-soak", str(self.cli.state))
            subprocess.run(["mount", *options], check=True, timeout=10)
            stack.callback(subprocess.run, ["umount", "--lazy", self.cli.state], check=False, timeout=10)
            self.answerer = Answerer()
            stack.callback(self.answerer.close)
            self.lab.bridge("br0", "198.51.100.1/24", "2001:db8:a::1/64")
            self.plain_netns = [self._plain_netns(number) for number in range(PLAIN)]
            self.watcher = Watcher(self.cli)
            stack.callback(self._end_watcher)
            self.watcher.start()
            self.anchor = self._anchor()
            self.line = stack.enter_context(Line(self.lab.remote, HOST4, LINE_PORT))
            self.talker = Talker(self.lab.remote, HOST4, TALK_PORT)
            stack.callback(self.talker.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def copy_image(self) -> None:
        """Make the image known in the second namespace too."""
        archive = self.containerd.directory / "copy.tar"
        self.containerd.ctr("images", "export", archive, self.containerd.image)
        self.containerd.import_image(archive, namespace=NAMESPACE)
        archive.unlink()

    def _plain_netns(self, number: int) -> Netns:
        at = number + 2
        return self.lab.container_like(
            *(f"plain{number}", "br0", f"198.51.100.{at}/24", f"2001:db8:a::{at}/64"),
            gateway4="198.51.100.1",
            gateway6="2001:db8:a::1",
        )

    def _anchor(self) -> str:
        """Start the container that is never touched; a connection to it stays open throughout."""
        name = self.containerd.unique("anchor")
        ports = (f"{LINE_PORT}:{ECHO_PORT}", f"{LINE_PORT + 1}:80")
        self.run(name, *(word for port in ports for word in ("-p", port)))
        self.answerer.serve(f"default/{name}", self.inside(name))
        return name

    # ---- what operations are made of

    def run(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """`ctrport run -d` of a server that answers with the container's name."""
        page = PAGE.format(name=f"default/{name}")
        return self.cli("run", "-d", "--name", name, *options, self.containerd.image, "sh", "-c", page)

    def run_plain(self, slot: Slot, publish: str) -> subprocess.CompletedProcess[str]:
        """`ctr run -d` with an annotation, in a namespace that is not ours."""
        netns = self.plain_netns[slot.number - (SLOTS - PLAIN)]
        page = PAGE.format(name=slot.full_name)
        words = ("--annotation", f"ctrport.io/publish={publish}", "--with-ns", f"network:{netns.path}")
        return self.ctr(slot, "run", "-d", *words, self.containerd.image, slot.name, "sh", "-c", page)

    def ctr(self, slot: Slot, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.containerd._ctr("-n", slot.namespace, *words)

    def inside(self, name: str) -> Netns:
        """Give the network namespace that `ctrport run` made for a container, by its name under /run/netns."""
        (path,) = DIRECTORY.glob(f"ctrport-{name}-*")
        return Netns.at(path, name)

    def serve(self, slot: Slot) -> None:
        """Open the sockets that answer for a slot's container."""
        if slot.plain:
            self.answerer.serve(slot.full_name, self.plain_netns[slot.number - (SLOTS - PLAIN)])
        elif list(DIRECTORY.glob(f"ctrport-{slot.name}-*")):
            self.answerer.serve(slot.full_name, self.inside(slot.name))

    def task_pid(self, slot: Slot) -> int | None:
        """Give the process id of a slot's running task."""
        for line in self.ctr(slot, "tasks", "list").stdout.splitlines()[1:]:
            name, pid, status = line.split()
            if name == slot.name and status != "STOPPED":
                return int(pid)
        return None

    def some_slot(self, rng: Random) -> Slot:
        return rng.choice(self.slots)

    # ---- what comparing is made of

    def bridges(self) -> list[str]:
        """Give the bridges of the networks that `ctrport network` has made."""
        files = self.cli.root.glob("networks/*/network.json")
        return sorted(json.loads(path.read_text())["bridge"] for path in files)

    def stray(self) -> list[str]:
        """Say what is left of containers that are no more: namespaces, leases, files; and containers of no slot."""
        there = set(self.containerd.ctr("containers", "list", "--quiet").split())
        plain = set(self.containerd.ctr("-n", NAMESPACE, "containers", "list", "--quiet").split())
        known = {slot.name for slot in self.slots if slot.made} | {self.anchor}
        found = {path.name: f"files of {path.name}" for path in self.cli.root.glob("containers/*/*")}
        for path in DIRECTORY.glob(f"ctrport-*-{self.containerd.token}-*"):
            found[path.name.removeprefix("ctrport-").rpartition("-")[0]] = f"namespace {path.name}"
        for path in self.cli.root.glob("networks/*/leases/*"):
            found[json.loads(path.read_text())["container"][1]] = f"lease {path.name}"
        nobody = [f"container {name}, which no slot has" for name in sorted((there | plain) - known)]
        return nobody + [text for name, text in sorted(found.items()) if name not in there]

    # ---- the end

    def _end_watcher(self) -> None:
        if self.watcher.running:
            try:
                self.watcher.terminate()
            except subprocess.TimeoutExpired:
                self.watcher.kill()

    def _remove_namespaces(self) -> None:
        for path in DIRECTORY.glob(f"ctrport-*-{self.containerd.token}-*"):
            subprocess.run(["ip", "netns", "delete", path.name], check=False, timeout=10)
        until(lambda: not list(DIRECTORY.glob(f"ctrport-*-{self.containerd.token}-*")), what="the namespaces' end")


__all__ = ["UDP_PORT", "Slot", "World"]
