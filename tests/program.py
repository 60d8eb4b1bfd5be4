"""The program as a user and as systemd run it, on the host of a lab."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import DIRECTORY, Netns, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from containerd_instance import LabContainerd

# What the first container ever makes and the last one leaves: the network, and what `flush` needs to know.
LASTING = {
    "root/cni",
    "root/cni/default",
    "root/containers",
    "root/containers/default",
    "root/networks",
    "root/networks/default",
    "root/networks/default/last",
    "root/networks/default/leases",
    "root/networks/default/network.json",
    "state/lock",
    "state/sysctl.json",
    "state/watch.sock",
}
_exec_numbers = itertools.count(1)


class Cli:
    """The command line program, run on the lab's host with directories of its own."""

    def __init__(self, containerd: LabContainerd, directory: Path) -> None:
        self.containerd = containerd
        self.directory = directory
        self.root = directory / "root"
        self.state = directory / "state"
        self.config = directory / "config.toml"
        self.config.touch()
        self._processes: list[subprocess.Popen[Any]] = []
        found = importlib.util.find_spec("ctrport")
        if found is None or found.origin is None:
            raise AssertionError("ctrport cannot be imported: run scripts/setup-dev")
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("CTRPORT_", "CONTAINERD_"))
        }
        self.environment = {
            **kept,
            # The same code as the tests import, whatever is installed.
            "PYTHONPATH": str(Path(found.origin).parents[1]),
            "PATH": containerd.environment["PATH"],  # where ctr is of containerd's own version
            "CONTAINERD_ADDRESS": containerd.address,
            "CTRPORT_CONFIG": str(self.config),
            # Output for a reader that is no terminal, and wide enough not to be wrapped.
            "COLUMNS": "300",
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

    def argv(self, *arguments: str | Path) -> list[str]:
        """Give the command line, global options first."""
        directories = ["--root", str(self.root), "--state", str(self.state)]
        return [sys.executable, "-m", "ctrport", *directories, *map(str, arguments)]

    def __call__(
        self,
        *arguments: str | Path,
        check: bool = False,
        input: str | None = None,  # noqa: A002 - subprocess's own name
        timeout: float = 60,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command; with `check` a failure is raised with what the command said."""
        return self.containerd.lab.host.run(
            *self.argv(*arguments),
            check=check,
            input=input,
            timeout=timeout,
            env={**self.environment, **(env or {})},
        )

    def popen(
        self, *arguments: str | Path, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command in the background; it is killed at the end of the test at the latest."""
        environment = {**self.environment, **(env or {})}
        process = self.containerd.lab.host.popen(*self.argv(*arguments), env=environment, **options)
        self._processes.append(process)
        return process

    @contextlib.contextmanager
    def container(
        self, *options: str | Path, word: str = "web", image: str | None = None, command: tuple[str, ...] = ()
    ) -> Iterator[str]:
        """Run a detached container, give its name, and remove it at the end, whatever state it is in."""
        name = self.containerd.unique(word)
        image = image or self.containerd.image
        self("run", "-d", "--name", name, *options, image, *command, check=True)
        try:
            yield name
        finally:
            self("rm", "-f", name)

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        """Run a command that prints data and give what it printed, read."""
        found: dict[str, Any] = json.loads(self(*arguments, "--format", "json", check=True).stdout)
        return found

    def entry(self, name: str) -> dict[str, Any]:
        """Give one container of `ps`, running or not."""
        entries = self.json("ps", "-a")["containers"]
        return next(entry for entry in entries if entry["id"] == name)

    def inside(self, name: str) -> Netns:
        """Give a container's network namespace."""
        return Netns.at(self.entry(name)["netns"], name)

    def execute(self, name: str, *command: str) -> str:
        """Run a command that prints something in a running container, and give it.

        On a machine under load `ctr` sometimes comes too late for what a short process printed.
        """
        return until(
            lambda: self.containerd.ctr("tasks", "exec", "--exec-id", f"x{next(_exec_numbers)}", name, *command),
            what=f"the output of {' '.join(command)}",
        )

    def spec(self, name: str) -> dict[str, Any]:
        """Give a container's OCI spec."""
        found: dict[str, Any] = json.loads(self.containerd.ctr("containers", "info", name))
        return dict(found["Spec"])

    def everything(self) -> dict[str, list[str]]:
        """Describe all that a command could leave behind on this host, for comparison.

        Without what outlives every container by design: lock files, the network's description, old settings.
        """
        host = self.containerd.lab.host
        links = host.run("ip", "-o", "link").stdout.splitlines()
        # nft lists tables in the order in which they were made.
        tables = host.run("nft", "--stateless", "list", "ruleset").stdout.split("\ntable ")
        tables = [table.removeprefix("table ").rstrip("\n") for table in tables]
        tables = [table for table in tables if not table.startswith("inet ctrport-keep ")]  # as long as a watcher
        files = [path.relative_to(self.directory) for path in self.directory.rglob("*")]
        kept = {"root", "state", "config.toml", "notify", "watch.log", *LASTING}
        return {
            "rules": [line for table in sorted(tables) for line in table.splitlines()],
            "links": sorted(line.split(":")[1].split("@")[0].strip() for line in links),
            "namespaces": sorted(p.name for p in DIRECTORY.glob("*") if self.containerd.token in p.name),
            "files": sorted(str(path) for path in files if str(path) not in kept),
            "containers": sorted(self.containerd.leftovers()),
            "snapshots": self.containerd.ctr("snapshots", "list").splitlines(),
        }

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)


class Watcher:
    """`ctrport watch`, started as systemd would."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._process: subprocess.Popen[Any] | None = None
        self.log_path = cli.directory / "watch.log"
        self.notifications: list[str] = []

    @property
    def pid(self) -> int:
        """The process id of the watcher that was started last."""
        if self._process is None:
            raise AssertionError("the watcher was never started")
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *arguments: str, within: float = 15) -> None:
        """Start it and wait until it says READY=1 (sd_notify)."""
        path = self._cli.directory / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.log_path.open("ab") as log:
            notify.bind(str(path))
            self._process = self._cli.popen(
                *("watch", *arguments),
                env={"NOTIFY_SOCKET": str(path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            until(lambda: self._ready(notify), within=within, every=0, what=f"READY=1 of\n{self.log}")
        # Later notifications find nobody, as with a service manager that went away.

    def _ready(self, notify: socket.socket) -> bool:
        if select.select([notify], [], [], 0.05)[0]:
            text = notify.recv(65536).decode()
            self.notifications.append(text)
            return "READY=1" in text.splitlines()
        if not self.running:
            raise AssertionError(f"ctrport watch ended before it was ready:\n{self.log}")
        return False

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it with -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def terminate(self) -> int:
        """End it as systemd does and give its exit code."""
        if self._process is None:
            raise AssertionError("the watcher was never started")
        self._process.terminate()
        return self._process.wait(15)

    def restart(self) -> None:
        """End it in good order and start it again."""
        self.terminate()
        self.start()
