"""OCI images without a registry: archives for `ctr images import`, built from programs of this machine.

The same inputs give the same bytes, so an image's digest changes only when its programs do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import platform
import re
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BUSYBOX = Path("/bin/busybox")
# Debian's redis-tools ships redis-server under this name; it looks at argv[0] to know what it is to be.
REDIS = Path("/usr/bin/redis-check-rdb")

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

# What the web image answers at /cgi-bin/whoami: whom the server saw. busybox writes [::ffff:192.0.2.2]:4001.
WHOAMI = b"""#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
printf '%s\\n' "$REMOTE_ADDR"
"""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One entry of a root file system."""

    content: bytes = b""
    mode: int = 0o644
    link: str | None = None
    directory: bool = False


def busybox_image(
    path: Path,
    ref: str,
    *,
    cmd: Sequence[str],
    entrypoint: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    exposed: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    user: str | None = None,
    files: Mapping[str, File] | None = None,
) -> Path:
    """Write an image with busybox and all its applets; `exposed` as "80/tcp", `files` by absolute path."""
    root = _base()
    root["/bin/busybox"] = File(BUSYBOX.read_bytes(), 0o755)
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True, timeout=10)
    for applet in applets.stdout.split():
        if applet != "busybox":
            root[f"/bin/{applet}"] = File(link="busybox")
    root.update(files or {})
    return write_image(
        path, ref, root, cmd=cmd, entrypoint=entrypoint, env=env, exposed=exposed, labels=labels, user=user
    )


def web_image(path: Path, ref: str, *, page: str = "It works!\n", labels: Mapping[str, str] | None = None) -> Path:
    """Write a busybox image that serves a page on port 80, and at /cgi-bin/whoami the client's address."""
    return busybox_image(
        path,
        ref,
        cmd=["httpd", "-f", "-p", "80", "-h", "/www"],
        exposed=["80/tcp"],
        labels=labels,
        files={
            "/www/index.html": File(page.encode()),
            "/www/cgi-bin/whoami": File(WHOAMI, 0o755),
        },
    )


def pause_image(path: Path, ref: str) -> Path:
    """Write what stands for Kubernetes' pause image: a pod's first container, which does nothing but be there."""
    return busybox_image(path, ref, cmd=["sleep", "1000000000"])


def libraries(*programs: Path) -> dict[str, File]:
    """Give the shared libraries that programs of this machine need, as ldd finds them."""
    said = subprocess.run(["ldd", *programs], check=True, capture_output=True, text=True, timeout=10).stdout
    found = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, flags=re.MULTILINE)
    return {library: File(Path(library).read_bytes(), 0o755) for library in found}


def redis_image(path: Path, ref: str) -> Path:
    """Write a Redis server's image: Debian's binary and the shared libraries that it needs."""
    root = _base()
    root["/usr/bin/redis-server"] = File(REDIS.read_bytes(), 0o755)
    root["/data"] = File(mode=0o777, directory=True)
    root |= libraries(REDIS)
    return write_image(
        path,
        ref,
        root,
        cmd=["redis-server", "--protected-mode", "no", "--save", ""],
        exposed=["6379/tcp"],
        workdir="/data",
    )


def write_image(
    path: Path,
    ref: str,
    root: Mapping[str, File],
    *,
    cmd: Sequence[str],
    entrypoint: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    exposed: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    user: str | None = None,
    workdir: str = "/",
) -> Path:
    """Write an OCI archive of one layer that `ctr images import` makes the image `ref` from."""
    layer = _tar(root)
    machine = ARCHITECTURES.get(platform.machine(), platform.machine())
    config: dict[str, Any] = {
        "Cmd": list(cmd),
        "Env": [f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()],
        "WorkingDir": workdir,
    }
    if entrypoint:
        config["Entrypoint"] = list(entrypoint)
    if exposed:
        config["ExposedPorts"] = {port: {} for port in exposed}
    if labels:
        config["Labels"] = dict(labels)
    if user:
        config["User"] = user
    blobs: dict[str, File] = {}

    def blob(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"/blobs/sha256/{digest}"] = File(content)
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    layer_descriptor = blob("layer.v1.tar", layer)
    config_descriptor = blob(
        "config.v1+json",
        _json(
            {
                "architecture": machine,
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [layer_descriptor["digest"]]},
            }
        ),
    )
    manifest = blob(
        "manifest.v1+json",
        _json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config_descriptor,
                "layers": [layer_descriptor],
            }
        ),
    )
    manifest["annotations"] = {
        "io.containerd.image.name": ref,
        "org.opencontainers.image.ref.name": ref.rpartition(":")[2],
    }
    archive = {
        "/oci-layout": File(_json({"imageLayoutVersion": "1.0.0"})),
        "/index.json": File(_json({"schemaVersion": 2, "manifests": [manifest]})),
        **blobs,
    }
    path.write_bytes(_tar(archive))
    return path


def _base() -> dict[str, File]:
    """Give what every root file system has: users, and the directories that programs expect."""
    return {
        "/etc/passwd": File(b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        "/etc/group": File(b"root:x:0:\nnogroup:x:65534:\n"),
        "/tmp": File(mode=0o1777, directory=True),  # noqa: S108 - in the image
        "/var/tmp": File(mode=0o1777, directory=True),  # noqa: S108 - in the image
        **{name: File(mode=0o755, directory=True) for name in ("/dev", "/proc", "/run", "/sys")},
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _tar(files: Mapping[str, File]) -> bytes:
    """Give a tar archive with every parent directory, in order, dated 1970 and owned by root."""
    parents = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "/"}
    entries = {**{name: File(mode=0o755, directory=True) for name in parents}, **files}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(entries):
            entry = entries[name]
            info = tarfile.TarInfo(name.lstrip("/"))
            info.mode = entry.mode
            if entry.directory:
                info.type = tarfile.DIRTYPE
            elif entry.link is not None:
                info.type = tarfile.SYMTYPE
                info.linkname = entry.link
                info.mode = 0o777
            else:
                info.size = len(entry.content)
            archive.addfile(info, io.BytesIO(entry.content))
    return buffer.getvalue()
