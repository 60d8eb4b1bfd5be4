"""A podman of our own in a network namespace: own storage, networks and locks, nothing left when it ends."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from lab import Netns

# What no option of podman puts elsewhere, the innermost first.
ELSEWHERE = (Path("/run/containers/networks"), Path("/run/containers"), Path("/var/lib/containers/cache"))
ELSEWHERE += (Path("/var/lib/containers"), Path("/run/libpod"))
CGROUPS = Path("/sys/fs/cgroup")
# Its own limits are more than a machine without CAP_SYS_RESOURCE may set.
CONFIG = """\
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
[network]
network_backend = "netavark"
"""


class Podman:
    """podman with netavark, and an image `web` that serves a page on port 80."""

    def __init__(self, host: Netns) -> None:
        self._host = host
        self._directory = Path(tempfile.mkdtemp(prefix="podm-"))
        self._made = [path for path in ELSEWHERE if not path.exists()]
        self._environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self._directory),
            "CONTAINERS_CONF": str(self._directory / "containers.conf"),
        }

    def __enter__(self) -> Self:
        try:
            (self._directory / "containers.conf").write_text(CONFIG)
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as archive:
                for path, data, mode in (
                    ("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755),
                    ("www/index.html", b"from podman\n", 0o644),
                ):
                    entry = tarfile.TarInfo(path)
                    entry.size, entry.mode = len(data), mode
                    archive.addfile(entry, io.BytesIO(data))
            archive_file = self._directory / "web.tar"
            archive_file.write_bytes(content.getvalue())
            self("import", str(archive_file), "localhost/web")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):
            self("rm", "--all", "--force", "--time", "0", timeout=300)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([m for m in mounts if m.startswith(f"{self._directory}/")]):
            subprocess.run(["umount", "--lazy", mount], check=False, timeout=10)
        shutil.rmtree(self._directory, ignore_errors=True)
        for path in self._made:
            if path.name in {"networks", "cache"}:
                shutil.rmtree(path, ignore_errors=True)
        groups = [*CGROUPS.glob("libpod_parent/**/"), *CGROUPS.glob("*/libpod_parent/**/")]
        for path in (*self._made, *reversed(groups)):
            with contextlib.suppress(OSError):  # in use by another podman
                path.rmdir()

    def __call__(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run one command of podman."""
        where = {"root": "root", "runroot": "run", "tmpdir": "tmp", "network-config-dir": "networks"}
        options = [f"--{option}={self._directory}/{name}" for option, name in where.items()]
        driver = "--storage-driver=overlay"
        return self._host.run("podman", *options, driver, *arguments, timeout=timeout, env=self._environment)
