"""A containerd of our own in a network namespace: own root, state and socket, and nothing left when it stops.

What it shares with every other containerd of the machine is runc's state (/run/containerd/runc) and the
shims' sockets (/run/containerd/s). Container ids must therefore be unique on the machine: `Containerd.unique`
makes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from images import redis_image, web_image
from lab import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab import Lab, Netns

RUNC_STATE = Path("/run/containerd/runc")
STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

WEB = "docker.io/library/web:latest"
REDIS = "docker.io/library/redis:latest"

# Version 2 is read by containerd 1.6 to 2.x. The restart monitor is what `restart policies` rest on.
CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [{disabled}]

[grpc]
  address = "{directory}/c.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"

[plugins."io.containerd.internal.v1.restart"]
  interval = "1s"
"""

# Writing a negative oom_score_adj needs CAP_SYS_RESOURCE, which some virtual machines do not give.
CRI_CONFIG = """
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{sandbox_image}"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{cni_bin}"
  conf_dir = "{directory}/cni"
"""


class Containerd:
    """One containerd, its shims and its containers."""

    def __init__(
        self,
        netns: Netns,
        *,
        path: str | None = None,
        cri: bool = False,
        sandbox_image: str = "registry.k8s.io/pause:3.6",
        cni_bin: str = "/usr/lib/cni",
        config: str = "",
    ) -> None:
        """Prepare an instance in `netns`; `start` runs it.

        `path` is a PATH where another version's containerd, ctr, shim and runc are found first; `config` is
        TOML to append. With `cri`, CNI configuration is read from `directory / "cni"`.
        """
        self.netns = netns
        # Short: a unix socket's path has at most 107 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="ctrd-"))
        self.address = str(self.directory / "c.sock")
        self.log_path = self.directory / "log"
        self.token = secrets.token_hex(3)
        self.environment = {"PATH": f"{path}:{STANDARD_PATH}" if path else STANDARD_PATH}
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[Any] | None = None
        disabled = [] if cri else ["io.containerd.grpc.v1.cri"]
        disabled += [f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")]
        text = CONFIG.format(directory=self.directory, disabled=", ".join(f'"{each}"' for each in disabled))
        if cri:
            (self.directory / "cni").mkdir()
            text += CRI_CONFIG.format(directory=self.directory, sandbox_image=sandbox_image, cni_bin=cni_bin)
        (self.directory / "config.toml").write_text(text + config)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The daemon's process id, while it runs."""
        if self._process is None:
            raise AssertionError("containerd is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        with self.log_path.open("ab") as log:
            self._process = self.netns.popen(
                *("containerd", "--config", self.directory / "config.toml"),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"containerd did not start:\n{self.log[-4000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        if not Path(self.address).exists():
            return False
        return self._ctr("--connect-timeout", "2s", "version").returncode == 0

    def kill(self) -> None:
        """Kill the daemon as a crash would; shims and containers live on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        """Kill the daemon as a crash would, and start it again."""
        self.kill()
        self.start()

    def ctr(self, *arguments: str | Path, check: bool = True, timeout: float = 60) -> str:
        """Run ctr against this instance, in its network namespace, and give what it prints."""
        result = self._ctr(*arguments, timeout=timeout)
        if check and result.returncode:
            command = " ".join(map(str, arguments))
            said = result.stderr + result.stdout
            raise AssertionError(f"ctr {command}: exit code {result.returncode}\n{said}")
        return result.stdout

    def _ctr(self, *arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return self.netns.run(
            *("ctr", "--address", self.address, *arguments),
            check=False,
            timeout=timeout,
            env=self.environment,
        )

    def import_image(self, path: Path, *, namespace: str = "default") -> None:
        """Import an archive made by `images`."""
        self.ctr("--namespace", namespace, "images", "import", path)

    def unique(self, name: str) -> str:
        """Give a container id with `name` in it that no other test, run or instance uses."""
        return f"{name}-{self.token}-{next(self._numbers)}"

    # ---- what is there

    def namespaces(self) -> list[str]:
        return self.ctr("namespaces", "list", "--quiet").split()

    def leftovers(self) -> list[str]:
        """List containers and tasks, as "namespace: container ID" lines."""
        found = []
        for namespace in self.namespaces():
            containers = self.ctr("-n", namespace, "containers", "list", "--quiet").split()
            tasks = self.ctr("-n", namespace, "tasks", "list", "--quiet").split()
            found += [f"{namespace}: container {each}" for each in containers]
            found += [f"{namespace}: task {each}" for each in tasks]
        return found

    def remove_all(self) -> None:
        """Kill and remove every task and container of this instance."""
        for namespace in self.namespaces():
            for task in self.ctr("-n", namespace, "tasks", "list", "--quiet").split():
                self.ctr("-n", namespace, "tasks", "delete", "--force", task, check=False)
            for container in self.ctr("-n", namespace, "containers", "list", "--quiet").split():
                self.ctr("-n", namespace, "containers", "delete", container, check=False)

    # ---- the end

    def stop(self) -> None:
        """End everything that belongs to this instance and remove its directories; may be called twice."""
        self.kill()
        sockets = self._shim_sockets()
        shims = list(self._shims())
        containers = {(bundle.parent.name, bundle.name) for bundle in self._bundles()}
        containers |= {(shim.namespace, shim.container) for shim in shims}
        for shim in shims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(shim.pid, signal.SIGKILL)
        until(lambda: not list(self._shims()), what="the end of the shims")
        for namespace, container in sorted(containers):
            self._runc_delete(namespace, container)
        self._unmount()
        for socket in sockets:
            Path(socket.removeprefix("unix://")).unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            raise AssertionError(f"{self.directory} could not be removed")

    def _bundles(self) -> list[Path]:
        return list(self.directory.glob("state/io.containerd.runtime.v2.task/*/*"))

    def _shim_sockets(self) -> list[str]:
        """Give the shims' sockets, "unix:///run/containerd/s/…"; a killed shim leaves its own behind."""
        return [path.read_text().strip() for bundle in self._bundles() for path in bundle.glob("address")]

    def _shims(self) -> Iterator[Shim]:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                arguments = path.read_bytes().decode(errors="replace").split("\0")
                options = dict(itertools.pairwise(arguments))
                if "shim" in arguments[0] and options.get("-address") == self.address:
                    yield Shim(int(path.parent.name), options.get("-namespace", ""), options.get("-id", ""))

    def _runc_delete(self, namespace: str, container: str) -> None:
        """Kill a container's processes and remove its cgroup and runc's record."""
        state = RUNC_STATE / namespace
        if (state / container).exists():
            subprocess.run(
                ["runc", "--root", state, "delete", "--force", container],
                check=False,
                env=self.environment,
                capture_output=True,
                timeout=30,
            )

    def _unmount(self) -> None:
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed(mounts):
            if mount.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", mount], check=False, timeout=10)


@dataclasses.dataclass(frozen=True, slots=True)
class Shim:
    """A running containerd-shim-runc-v2."""

    pid: int
    namespace: str
    container: str


class LabContainerd(Containerd):
    """A containerd on the host of a lab, with the images that tests run."""

    def __init__(self, lab: Lab, **options: Any) -> None:
        super().__init__(lab.host, **options)
        self.lab = lab
        self.image = WEB
        self.redis_image = REDIS

    def start(self) -> None:
        """Start the daemon; at the first start, import the images."""
        first = not self.log_path.exists()
        super().start()
        if first:
            for build, ref in ((web_image, self.image), (redis_image, self.redis_image)):
                archive = build(self.directory / "image.tar", ref)
                self.import_image(archive)
                archive.unlink()
