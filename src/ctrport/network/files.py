"""hostname, hosts and resolv.conf of a container: `ctr run` mounts none of them."""

from __future__ import annotations

import shutil
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrport.model.bindings import IPAddress
    from ctrport.model.workload import Key

NAMES = ("hostname", "hosts", "resolv.conf")
# systemd-resolved's stub listens on a loopback address; this file has the servers behind it.
RESOLVED_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")


def directory(root: Path, container: Key) -> Path:
    """Give the place of a container's own files."""
    return root / "containers" / container.namespace / container.id


def make_directory(root: Path, container: Key) -> Path:
    """Make a container's directory for root alone: what the container prints is in there."""
    where = directory(root, container)
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    return where


def write(
    where: Path,
    *,
    hostname: str,
    addresses: Sequence[IPAddress],
    extra_hosts: Sequence[tuple[str, str]] = (),
    dns: Sequence[str] = (),
    resolv_conf: Path = Path("/etc/resolv.conf"),
) -> list[tuple[Path, str]]:
    """Write the three files; gives pairs of source and destination to mount."""
    where.mkdir(parents=True, exist_ok=True)
    hosts = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
        *(f"{address}\t{hostname}" for address in addresses),
        *(f"{address}\t{name}" for name, address in extra_hosts),
    ]
    texts = (f"{hostname}\n", "\n".join(hosts) + "\n", resolver(dns, resolv_conf))
    mounts = []
    for name, text in zip(NAMES, texts, strict=True):
        (where / name).write_text(text, "utf-8")
        mounts.append((where / name, f"/etc/{name}"))
    return mounts


def resolver(dns: Sequence[str], resolv_conf: Path) -> str:
    """Give a container's resolv.conf: the servers asked for, else the host's that can be reached from there.

    A server on a loopback address of the host is not there in the container's namespace. Where all are such, the
    file names none: a guess would send the operator's queries to a stranger.
    """
    if dns:
        return "".join(f"nameserver {server}\n" for server in dns)
    lines = _lines(resolv_conf)
    if any(_is_loopback_server(line) for line in lines) and RESOLVED_UPSTREAM.exists():
        lines = _lines(RESOLVED_UPSTREAM)
    return "".join(f"{line}\n" for line in lines if not _is_loopback_server(line))


def remove(where: Path) -> None:
    """Remove a container's files; twice is the same as once."""
    shutil.rmtree(where, ignore_errors=True)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []


def _is_loopback_server(line: str) -> bool:
    words = line.split()
    if len(words) < 2 or words[0] != "nameserver":  # noqa: PLR2004 - keyword and address
        return False
    try:
        return ip_address(words[1].split("%")[0]).is_loopback
    except ValueError:
        return False
