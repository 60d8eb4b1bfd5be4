"""A Docker daemon of our own in a network namespace: own data, socket and containerd, nothing left when it stops.

Its bridge is docker0 in that namespace, its rules are those that it writes on any host.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from containerd_instance import Containerd
from lab import until

if TYPE_CHECKING:
    from lab import Netns

SUBNET = "203.0.113"
PAGE = "from Docker\n"
# What no option of dockerd puts elsewhere.
CGROUPS = Path("/sys/fs/cgroup")
ELSEWHERE = (Path("/etc/docker/key.json"), Path("/run/docker/plugins"), Path("/run/docker"))


class Docker:
    """dockerd, and an image `web` that serves a page on port 80."""

    def __init__(self, host: Netns, *, storage_driver: str = "vfs") -> None:
        self._host = host
        self._storage_driver = storage_driver
        self._containerd = Containerd(host)
        self._directory = self._containerd.directory / "docker"
        self.address = f"unix://{self._directory}/d.sock"
        self._made = [path for path in ELSEWHERE if not path.exists()]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            if containers := self("ps", "--all", "--quiet", check=False).stdout.split():
                self("rm", "--force", *containers, check=False)
            self._process.terminate()
            self._process.wait(20)
        self._containerd.stop()
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        for cgroup in [*CGROUPS.glob("docker"), *CGROUPS.glob("*/docker")]:
            with contextlib.suppress(OSError):  # in use by another Docker
                cgroup.rmdir()

    def _start(self) -> None:
        self._containerd.start()
        self._directory.mkdir()
        with (self._directory / "log").open("wb") as log:
            self._process = self._host.popen(
                *("dockerd", "--host", self.address, "--containerd", self._containerd.address),
                *("--data-root", self._directory / "data", "--exec-root", self._directory / "exec"),
                *("--pidfile", self._directory / "pid"),
                *("--storage-driver", self._storage_driver, "--oom-score-adjust", "0", "--bip", f"{SUBNET}.1/24"),
                env=self._containerd.environment,
                stdout=log,
                stderr=log,
            )
        until(self._answers, within=30, every=0.1, what=f"Docker, see {self._directory}/log,")
        image = io.BytesIO()
        with tarfile.open(fileobj=image, mode="w") as archive:
            for path, content, mode in (
                ("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755),
                ("www/index.html", PAGE.encode(), 0o644),
            ):
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(content), mode
                archive.addfile(entry, io.BytesIO(content))
        subprocess.run(
            ["docker", "--host", self.address, "import", "-", "web"],
            input=image.getvalue(),
            check=True,
            capture_output=True,
            timeout=60,
        )

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        if self._process is None:
            raise AssertionError("dockerd is not running")
        return self._process.pid

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError((self._directory / "log").read_text()[-3000:])
        return self("version", check=False).returncode == 0

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command of docker."""
        return self._host.run("docker", "--host", self.address, *arguments, check=check, timeout=60)

    def web(self, name: str, publish: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a container that serves the page, as `docker run -d -p` does."""
        command = ("/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www")
        return self("run", "--detach", "--name", name, "--publish", publish, "web", *command, check=check)
