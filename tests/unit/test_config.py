"""config.toml: what it may say, and what is told when it says something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctrport import config
from ctrport.config import Config
from ctrport.errors import InputError


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_an_empty_file_is_the_defaults(tmp_path: Path):
    """Every key has a default, and so has a file that is not there."""
    assert config.load(write(tmp_path, "# nothing\n"), required=True) == Config()
    assert config.load(tmp_path / "none.toml", required=False) == Config()


def test_every_key(tmp_path: Path):
    """The values are taken; whole numbers will do for seconds."""
    path = write(
        tmp_path,
        "mark = 0x40\nresync_seconds = 5\ntimeout_seconds = 2.5\n"
        "reserve_ports = false\nrelay_ipv6_loopback = true\n"
        'adjust_nftables = true\nfirewalld_zone = "internal"\n'
        'cni_config = "/srv/net.d"\ncni_plugins = ["/srv/bin", "/opt/cni/bin"]\n'
        'sysctl_directory = "/srv/sysctl.d"\n',
    )
    assert config.load(path, required=True) == Config(
        mark=0x40,
        resync_seconds=5.0,
        timeout_seconds=2.5,
        adjust_nftables=True,
        firewalld_zone="internal",
        cni_config=Path("/srv/net.d"),
        cni_plugins=(Path("/srv/bin"), Path("/opt/cni/bin")),
        reserve_ports=False,
        sysctl_directory=Path("/srv/sysctl.d"),
        sysctl_directory_given=True,
        relay_ipv6_loopback=True,
    )


def test_no_directory_for_settings(tmp_path: Path):
    """An empty name turns the file off; the default's own name, given, is another thing than the default."""
    off = config.load(write(tmp_path, 'sysctl_directory = ""\n'), required=True)
    assert (off.sysctl_directory, off.sysctl_directory_given) == (None, True)
    named = config.load(write(tmp_path, 'sysctl_directory = "/run/sysctl.d"\n'), required=True)
    assert (named.sysctl_directory, named.sysctl_directory_given) == (Config().sysctl_directory, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("marks = 1\n", "unknown key 'marks'"),
        ("mark = 3\n", "mark: 3 is not a single bit of 32"),
        ("mark = 0\n", "mark: 0 is not a single bit of 32"),
        ("mark = -1\n", "mark: -1 is not a single bit of 32"),
        ("mark = -2147483648\n", "is not a single bit of 32"),
        ("mark = 0x100000000\n", "is not a single bit of 32"),
        ("mark = true\n", "is not a single bit of 32"),
        ('mark = "0x10000"\n', "is not a single bit of 32"),
        ("resync_seconds = 0\n", "is not a number of seconds"),
        ("resync_seconds = -1\n", "is not a number of seconds"),
        ("resync_seconds = nan\n", "is not a number of seconds"),
        ("timeout_seconds = inf\n", "is not a number of seconds"),
        ("timeout_seconds = false\n", "is not a number of seconds"),
        ("timeout_seconds = [1]\n", "is not a number of seconds"),
        ("adjust_nftables = 1\n", "1 is neither true nor false"),
        ("relay_ipv6_loopback = 1\n", "relay_ipv6_loopback: 1 is neither true nor false"),
        ("reserve_ports = 1\n", "reserve_ports: 1 is neither true nor false"),
        ('firewalld_zone = "a b"\n', "'a b' is not the name of a firewalld zone"),
        ('cni_config = "net.d"\n', "cni_config: 'net.d' is not the absolute path"),
        ('cni_plugins = "/opt/cni/bin"\n', "is not a list of directories"),
        ("sysctl_directory = false\n", "sysctl_directory: False is not the absolute path"),
        ('sysctl_directory = "run"\n', "sysctl_directory: 'run' is not the absolute path"),
        ("cni_plugins = []\n", "is not a list of directories"),
        ('cni_plugins = ["/a:/b"]\n', "'/a:/b' is not the absolute path"),
        ("mark = \n", "Invalid value"),
        (b"\xff\n", "invalid start byte"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, message: str):
    """File, key and value are told."""
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        config.load(path, required=False)
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message


def test_a_file_that_was_asked_for(tmp_path: Path):
    """Named on the command line it must be there, and be a file."""
    with pytest.raises(InputError, match="no configuration file at"):
        config.load(tmp_path / "none.toml", required=True)
    with pytest.raises(InputError, match="Is a directory"):
        config.load(tmp_path, required=False)
