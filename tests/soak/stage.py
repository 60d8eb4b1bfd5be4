"""A containerd without containers for a real watcher and a real kernel: as many containers as one likes, at once.

The fake speaks containerd's wire. Its containers are processes that sleep in a handful of network namespaces, so
that a thousand of them cost nothing; the watcher, its table and the packets are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ctrport.containerd.pb import api_pb2 as api
from ctrport.model.workload import Key
from fakes import FakeContainerd, spec
from lab import DIRECTORY, Lab, Netns, connect
from soak import kernel
from soak.answers import Answerer
from soak.wanted import Container, Mapping, mappings
from soak.world import HOST4

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
PATIENCE = 30.0


class Stage:
    """The host, a remote machine, the fake containerd on a loop of its own, and the sleeping processes."""

    def __init__(self, places: int) -> None:
        self._number_of_places = places
        self._stack = contextlib.ExitStack()
        self.loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix="ctrport-soak-"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.lab = stack.enter_context(Lab(forwarding=False))
            for ns in (self.lab.host, self.lab.remote):  # a refusal must be told every time
                ns.sysctl("net/ipv4/icmp_ratelimit", 0)
                ns.sysctl("net/ipv6/icmp/ratelimit", 0)
            self.answerer = Answerer()
            stack.callback(self.answerer.close)
            self.lab.bridge("br0", "198.51.100.1/24", "2001:db8:a::1/64")
            self.places = [self._place(number) for number in range(self._number_of_places)]
            self._links = {link["ifname"] for link in json.loads(self.lab.host.run("ip", "-j", "link").stdout)}
            thread = threading.Thread(target=self.loop.run_forever, name="fake containerd", daemon=True)
            thread.start()
            stack.callback(thread.join, 5)
            stack.callback(self.loop.call_soon_threadsafe, self.loop.stop)
            self.fake = FakeContainerd(self.directory / "c.sock")
            self._wait(self.fake.start_server())
            stack.callback(lambda: self._wait(self.fake.stop_server()))
            stack.callback(self._remove_namespaces)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _place(self, number: int) -> tuple[int, dict[int, str]]:
        """Make a namespace with a process that sleeps in it; gives its pid and addresses."""
        address = {4: f"198.51.100.{number + 2}", 6: f"2001:db8:a::{number + 2:x}"}
        ns: Netns = self.lab.container_like(
            *(f"place{number}", "br0", f"{address[4]}/24", f"{address[6]}/64"),
            gateway4="198.51.100.1",
            gateway6="2001:db8:a::1",
        )
        self.answerer.serve(f"place {number}", ns)
        return ns.popen("sleep", "infinity", stdin=subprocess.DEVNULL).pid, address

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def stop_containerd(self) -> None:
        """End the server, and its socket."""
        self._wait(self.fake.stop_server())
        Path(self.fake.address).unlink(missing_ok=True)

    def start_containerd(self) -> None:
        self._wait(self.fake.start_server())

    def do(self, action: Callable[[FakeContainerd], T]) -> T:
        """Run something with the fake on its own thread, as one step that no request comes between."""

        async def work() -> T:
            return action(self.fake)

        found: T = self._wait(work())
        return found

    def environment(self) -> dict[str, str]:
        """Give the environment of a watcher, which tells the test's own socket that it is ready."""
        ours = ("CTRPORT_", "CONTAINERD_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {**kept, "PYTHONPATH": ":".join(sys.path), "NOTIFY_SOCKET": str(self.directory / "notify")}

    def words(self) -> tuple[str | Path, ...]:
        """Give the global options of a command that is for this stage."""
        settings = ("--config", self.directory / "config.toml")
        return ("--address", self.fake.address, "--root", self.root, "--state", self.state, *settings)

    def watch(
        self,
        *,
        config: str = "",
        program: tuple[str, ...] = ("-m", "ctrport"),
        env: Mapping[str, str] | None = None,
        within: float = PATIENCE,
    ) -> subprocess.Popen[bytes]:
        """Start `ctrport watch`, or another Python program with its command line, and wait until it is ready."""
        (self.directory / "config.toml").write_text(config)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.log_path.open("ab") as log:
            path = self.directory / "notify"
            path.unlink(missing_ok=True)
            notify.bind(str(path))
            notify.settimeout(within)
            process = self.lab.host.popen(
                *(sys.executable, *program, *self.words(), "watch"),
                env={**self.environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            while b"READY=1" not in notify.recv(65536):
                pass
        return process

    # ---- what is there

    def containers(self) -> list[Container]:
        """Give what runs and asks, the oldest first, from the fake's own records."""
        places = dict(self.places)

        def read(fake: FakeContainerd) -> list[Container]:
            found = []
            for key, process in fake.processes.items():
                if process.status != api.RUNNING:
                    continue
                record = fake.records[key]
                publish = json.loads(record.spec.value)["annotations"].get("ctrport.io/publish", "")
                created = f"{record.created_at.seconds:012d}.{record.created_at.nanos:09d}"
                found.append(
                    Container(str(key), created, publish, "RUNNING", process.pid, places[process.pid], "br0")
                )
            return sorted(found, key=lambda container: container.created)

        return [container for container in self.do(read) if container.publish]

    def place_of(self, mapping: Mapping) -> str:
        """Name the place whose sockets answer for a mapping."""
        return next(f"place {n}" for n, (_, address) in enumerate(self.places) if address[4] == mapping.address[4])

    def converged(self, *, within: float = PATIENCE, every: float = 0.02) -> tuple[list[str], list[Mapping], float]:
        """Wait until the kernel holds what is wanted; gives what differs at the end, and the seconds it took."""
        began = time.monotonic()
        containers = self.containers()
        granted = mappings(containers)
        bridges = [json.loads(p.read_text())["bridge"] for p in self.root.glob("networks/*/network.json")]
        while True:
            found = kernel.differences(kernel.read(self.lab.host), granted, containers, bridges)
            took = time.monotonic() - began
            if not found or took > within:
                return found, granted, took
            time.sleep(every)

    def echoes(self, port: int) -> bool:
        """Say whether the echo of a container answers the remote machine on a port of the host."""
        try:
            with connect(self.lab.remote, HOST4, port) as connection:
                connection.socket.sendall(b"hello\n")
                return connection.socket.recv(100) == b"hello\n"
        except OSError:
            return False

    def stray(self) -> list[str]:
        """Say what is left of reservations that nobody holds any more."""
        found = [f"lease {path.name}" for path in self.root.glob("networks/*/leases/*")]
        found += [f"namespace {path.name}" for path in self._namespaces()]
        names = {link["ifname"] for link in json.loads(self.lab.host.run("ip", "-j", "link").stdout)}
        return found + [f"link {name}" for name in sorted(names - self._links - {"ctrport0"})]

    def _namespaces(self) -> list[Path]:
        return list(DIRECTORY.glob(f"ctrport-r{self.directory.name[-8:]}-*"))

    def reservation(self, number: int) -> Key:
        """Give the name of a container that is reserved for and never made; unique on the machine."""
        return Key("default", f"r{self.directory.name[-8:]}-{number}")

    def _remove_namespaces(self) -> None:
        for path in self._namespaces():
            subprocess.run(["ip", "netns", "delete", path.name], check=False, timeout=10)


def add(fake: FakeContainerd, name: str, publish: str) -> Key:
    """Create a container that asks for ports."""
    return fake.add(Key("default", name), spec({"ctrport.io/publish": publish}))
