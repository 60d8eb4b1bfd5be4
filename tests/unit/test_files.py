"""hostname, hosts and resolv.conf of a container."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from ctrport.model.workload import Key
from ctrport.network import files

if TYPE_CHECKING:
    from pathlib import Path

STUB = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n"


@pytest.fixture(autouse=True)
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the place of the file with the servers behind systemd-resolved's stub; there is none at first."""
    path = tmp_path / "upstream.conf"
    monkeypatch.setattr(files, "RESOLVED_UPSTREAM", path)
    return path


def resolver(directory: Path, text: str | None, *dns: str) -> str:
    path = directory / "resolv.conf"
    if text is not None:
        path.write_text(text)
    return files.resolver(dns, path)


def test_the_three_files(tmp_path: Path):
    """Each is written, and named with the place where the container has it."""
    where = files.directory(tmp_path, Key("default", "web"))
    mounts = files.write(
        where,
        hostname="web",
        addresses=[ip_address("198.51.100.2"), ip_address("2001:db8::2")],
        extra_hosts=[("db", "198.51.100.9")],
        dns=["192.0.2.53"],
    )
    assert [(source.relative_to(tmp_path).as_posix(), target) for source, target in mounts] == [
        ("containers/default/web/hostname", "/etc/hostname"),
        ("containers/default/web/hosts", "/etc/hosts"),
        ("containers/default/web/resolv.conf", "/etc/resolv.conf"),
    ]
    assert [source.read_text() for source, _ in mounts] == [
        "web\n",
        (
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
            "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            "198.51.100.2\tweb\n2001:db8::2\tweb\n198.51.100.9\tdb\n"
        ),
        "nameserver 192.0.2.53\n",
    ]


def test_removal_twice(tmp_path: Path):
    """The second time changes nothing, and others' files stay."""
    one, other = (files.directory(tmp_path, Key("default", name)) for name in ("web", "db"))
    for where in (one, other):
        files.write(where, hostname="x", addresses=[])
    files.remove(one)
    files.remove(one)
    assert not one.exists()
    assert (other / "hosts").exists()


def test_the_host_s_servers(tmp_path: Path):
    """Servers that a container can reach are taken with everything else in the file."""
    text = "search example.org\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:2\n"
    assert resolver(tmp_path, text) == text


def test_servers_on_loopback_are_left_out(tmp_path: Path):
    """They are not there in the container's namespace; no server of a stranger takes their place."""
    text = "nameserver 127.0.0.1\nnameserver ::1\nnameserver 192.0.2.53\n"
    assert resolver(tmp_path, text) == "nameserver 192.0.2.53\n"
    assert resolver(tmp_path, "nameserver 127.0.0.1\nsearch example.org\n") == "search example.org\n"


def test_the_servers_behind_the_stub(tmp_path: Path, upstream: Path):
    """Where systemd-resolved answers on loopback, its own servers are named."""
    assert "nameserver" not in resolver(tmp_path, STUB)
    upstream.write_text("nameserver 192.0.2.53\nsearch example.org\n")
    assert resolver(tmp_path, STUB) == "nameserver 192.0.2.53\nsearch example.org\n"


def test_servers_that_were_asked_for(tmp_path: Path):
    """They replace the host's, in their order."""
    asked = resolver(tmp_path, "nameserver 192.0.2.53\n", "192.0.2.9", "2001:db8::9")
    assert asked == "nameserver 192.0.2.9\nnameserver 2001:db8::9\n"


@pytest.mark.parametrize(
    "text", [None, "", "nameserver\n", "nameserver fe80::1%eth0\n", "nameserver none\n", "\x00\n"]
)
def test_odd_files(tmp_path: Path, text: str | None):
    """A file that is missing or odd is passed on as it is."""
    assert resolver(tmp_path, text) == (text or "")
