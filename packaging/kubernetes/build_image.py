#!/usr/bin/python3
# ruff: noqa: T201 - a program of its own, which talks to whoever started it
"""Write the image that daemonset.yaml runs: an OCI archive of Debian 12's packages and this checkout.

    sudo packaging/kubernetes/build_image.py ctrport.tar [NAME:TAG]
    ctr -n k8s.io images import ctrport.tar

For Debian 12 as root, with mmdebstrap and python3-venv; no Docker and no registry. The first layer has Debian's
packages as the mirror offers them that day, unpacked and not configured (none needs it), with a list of them where
scanners of images look. It is kept in .cache/image: remove that to have it anew. The second layer has ctrport and
its requirements in the versions of requirements-dev.lock.

Debian 12, because libnftables must not be newer than the nft of the nodes: an old nft does not read every rule that
a new library writes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

SUITE = "bookworm"
# nft and iptables are what other firewalls on the node are read with, gRPC needs libstdc++; no shell is needed.
PACKAGES = (
    *("base-files", "python3-minimal", "libpython3-stdlib", "python3-nftables"),
    *("libstdc++6", "nftables", "iptables"),
)
SOURCE = Path(__file__).resolve().parents[2]
CACHE = SOURCE / ".cache" / "image"
PYTHON = Path("/usr/bin/python3")  # of the same version as the image's: it compiles the modules
DEFAULT_REF = "localhost/ctrport:{version}"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PROGRAM = """\
#!/usr/bin/python3 -I
from ctrport.cli import main

main()
"""
# What distribution-less images have in place of dpkg's database, and scanners read: a file for each package.
LIST_PACKAGES = (
    'mkdir -p "$1/var/lib/dpkg/status.d"; for deb in "$1"/var/cache/apt/archives/*.deb; do '
    'dpkg-deb --field "$deb" >"$1/var/lib/dpkg/status.d/$(dpkg-deb --field "$deb" Package)"; done'
)


def main() -> None:
    """Build the image and write the archive."""
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit("usage: build_image.py OUTPUT.tar [NAME:TAG]")
    if os.geteuid() != 0:
        sys.exit("build_image.py: files of an image belong to root: run as root")
    version = _run(PYTHON, "-c", "import platform; print(platform.python_version())").strip()
    if not version.startswith("3.11."):
        sys.exit(f"build_image.py: {PYTHON} is Python {version}, the image's is 3.11: run it on Debian 12")
    output = Path(sys.argv[1])
    ref = sys.argv[2] if len(sys.argv) > 2 else DEFAULT_REF.format(version=_version())  # noqa: PLR2004
    write(output, ref, [debian(), program()])
    print(f"{output}: {ref}, {output.stat().st_size >> 20} MB")


def debian() -> bytes:
    """Give the layer with Debian's packages, from the cache if it is there."""
    key = hashlib.sha256(_json([PACKAGES, LIST_PACKAGES])).hexdigest()[:12]
    cached = CACHE / f"{SUITE}-{platform.machine()}-{key}.tar.gz"
    if cached.exists():
        return cached.read_bytes()
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "root"
        _run(
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--include={','.join(PACKAGES)}"),
            *(f"--extract-hook={LIST_PACKAGES}", "--dpkgopt=path-exclude=/usr/share/man/*"),
            *("--dpkgopt=path-exclude=/usr/share/locale/*", SUITE, root),
            show=True,
        )
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/usr/sbin/nologin\n")
        (root / "etc/group").write_text("root:x:0:\n")
        _compile(root, "usr/lib/python3.11", "usr/lib/python3/dist-packages")
        content = _layer(root, leave_out=("dev", "var/lib/apt", "var/cache", "var/log"))
    CACHE.mkdir(parents=True, exist_ok=True)
    draft = cached.with_suffix(".draft")
    draft.write_bytes(content)
    draft.rename(cached)
    return content


def program() -> bytes:
    """Give the layer with ctrport and its requirements."""
    packages = "usr/local/lib/python3.11/dist-packages"
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "root"
        _run(PYTHON, "-m", "venv", f"{work}/venv")
        # As a constraint the lock holds also for what builds our wheel.
        _run(
            *(f"{work}/venv/bin/python", "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"),
            *("--target", root / packages, SOURCE),
            environment={"PIP_CONSTRAINT": str(SOURCE / "requirements-dev.lock")},
            show=True,
        )
        _run("rm", "-rf", root / packages / "bin")
        _compile(root, packages)
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/ctrport").write_text(PROGRAM)
        (root / "usr/bin/ctrport").chmod(0o755)
        return _layer(root)


def write(output: Path, ref: str, layers: list[bytes]) -> None:
    """Write an OCI archive of layers (tar, gzip)."""
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    plain = [f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}" for layer in layers]
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "Entrypoint": ["/usr/bin/ctrport"],
            "Cmd": ["watch"],
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": plain},
    }
    manifest = blob(
        "manifest.v1+json",
        _json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": blob("config.v1+json", _json(config)),
                "layers": [blob("layer.v1.tar+gzip", layer) for layer in layers],
            }
        ),
    )
    manifest["annotations"] = {
        "io.containerd.image.name": ref,
        "org.opencontainers.image.ref.name": ref.rpartition(":")[2],
    }
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [manifest]}),
        **blobs,
    }
    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _compile(root: Path, *directories: str) -> None:
    """Compile modules for a root file system that is read-only, the same bytes each time."""
    options = ("-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/")
    _run(PYTHON, "-m", "compileall", *options, *(root / each for each in directories))


def _layer(root: Path, *, leave_out: tuple[str, ...] = ()) -> bytes:
    """Give a directory as a layer, in order, dated 1970."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if any(name == each or name.startswith(f"{each}/") for each in leave_out):
                continue
            entry = archive.gettarinfo(path, name)
            entry.mtime = entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            if entry.isfile():
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _version() -> str:
    lines = (SOURCE / "src/ctrport/__init__.py").read_text("utf-8").splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("__version__"))


def _run(*argv: str | Path, environment: dict[str, str] | None = None, show: bool = False) -> str:
    result = subprocess.run(
        [*map(str, argv)],
        check=False,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if show else subprocess.PIPE,
        text=True,
        timeout=900,
    )
    if result.returncode:
        sys.exit(f"build_image.py: {argv[0]} failed with exit code {result.returncode}")
    return result.stdout or ""


if __name__ == "__main__":
    main()
