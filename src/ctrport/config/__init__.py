"""Where things are and how they are set: the global options and config.toml.

A file is taken as a whole or not at all. `place` and `locate` know where in the file a value stands, `policy` reads
the table of that name, `render` writes a configuration out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport import defaults
from ctrport.errors import InputError
from ctrport.model.mark import DEFAULT_MARK
from ctrport.model.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ctrport.config.place import Place

DEFAULT_SYSCTL_DIRECTORY = Path("/run/sysctl.d")
# Keys whose value a watcher has built upon: marks of connections, deadlines, sockets, files.
AT_START = ("mark", "timeout_seconds", "reserve_ports", "relay_ipv6_loopback", "sysctl_directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """config.toml: every key has a default."""

    mark: int = DEFAULT_MARK  # one bit of the conntrack mark
    resync_seconds: float = 60.0  # between full passes: the belt to the events' braces
    timeout_seconds: float = 10.0  # for each call to containerd
    adjust_nftables: bool = False  # put our accepts into hand-written nftables chains that drop
    firewalld_zone: str = "trusted"  # for our bridges; "" leaves firewalld alone
    cni_config: Path = Path("/etc/cni/net.d")  # networks for `run --network cni`
    cni_plugins: tuple[Path, ...] = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))  # Debian's place, and the usual
    reserve_ports: bool = True  # the watcher holds published ports against other programs
    sysctl_directory: Path | None = DEFAULT_SYSCTL_DIRECTORY  # keeps settings from `sysctl --system`; None: off
    sysctl_directory_given: bool = False  # by config.toml: it is written whatever namespace this is
    relay_ipv6_loopback: bool = False  # the watcher passes on tcp from [::1]
    policy: Policy = field(default_factory=Policy)  # who may publish what


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every command needs to know of where it runs."""

    address: str = defaults.ADDRESS
    namespace: str = defaults.NAMESPACE
    root: Path = defaults.ROOT
    state: Path = defaults.STATE
    config: Config = field(default_factory=Config)
    config_file: Path = defaults.CONFIG
    config_found: bool = False  # whether that file was there
    config_error: InputError | None = None  # why it could not be taken, where a command goes on without

    def without_watcher(self) -> Settings:
        """Give the settings of a process that does not stay: it relays nothing."""
        return replace(self, config=replace(self.config, relay_ipv6_loopback=False))


def load(path: Path, *, required: bool) -> Config:
    """Read config.toml; the defaults where it may be missing and is. InputError as by `read`."""
    return read(path, required=required) or Config()


def read(path: Path, *, required: bool) -> Config | None:
    """Read config.toml, None if there is none. InputError names the file, the line, the key and what is wrong."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if required:
            raise InputError(f"no configuration file at {path}") from None
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    import tomllib  # noqa: PLC0415 - these are for who has such a file

    from ctrport.config.place import Place  # noqa: PLC0415

    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: {error}") from error
    known: dict[str, Callable[[Place], Any]] = {
        "mark": _mark,
        "resync_seconds": _seconds,
        "timeout_seconds": _seconds,
        "adjust_nftables": Place.flag,
        "firewalld_zone": _zone,
        "cni_config": _directory,
        "cni_plugins": _directories,
        "reserve_ports": Place.flag,
        "sysctl_directory": _directory_or_none,
        "relay_ipv6_loopback": Place.flag,
        "policy": _policy,
    }
    values = Place(value=raw, file=path, text=text).read(known)
    return Config(**values, sysctl_directory_given="sysctl_directory" in values)


def taken_over(old: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """Give what a running watcher can make of a new configuration, and the keys that wait for its next start."""
    waiting = tuple(key for key in AT_START if getattr(old, key) != getattr(new, key))
    kept = {key: getattr(old, key) for key in (*waiting, "sysctl_directory_given")}
    return replace(new, **kept), waiting


def _policy(at: Place) -> Policy:
    from ctrport.config.policy import policy  # noqa: PLC0415 - most have no such table

    return policy(at)


def _mark(at: Place) -> int:
    value = at.value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32 or value.bit_count() != 1:
        raise at.error(f"{value!r} is not a single bit of 32", hint=f"for example {DEFAULT_MARK:#x}")
    return value


def _seconds(at: Place) -> float:
    value = at.value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.1 <= value <= 86400:  # noqa: PLR2004
        raise at.error(f"{value!r} is not a number of seconds from 0.1 to 86400")
    return float(value)


def _zone(at: Place) -> str:
    if not isinstance(at.value, str) or not re.fullmatch(r"[A-Za-z0-9_./-]{0,64}", at.value):
        raise at.error(f"{at.value!r} is not the name of a firewalld zone", hint="firewall-cmd --get-zones")
    return at.value


def _directory(at: Place) -> Path:
    if not isinstance(at.value, str) or not at.value.startswith("/") or ":" in at.value:
        raise at.error(f"{at.value!r} is not the absolute path of a directory")
    return Path(at.value)


def _directory_or_none(at: Place) -> Path | None:
    return None if at.value == "" else _directory(at)


def _directories(at: Place) -> tuple[Path, ...]:
    found = tuple(_directory(each) for each in at.items("directories", '["/opt/cni/bin"]'))
    if not found:
        raise at.error("[] is not a list of directories", hint='for example ["/opt/cni/bin"]')
    return found
