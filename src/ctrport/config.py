"""Where things are and how they are set: the global options and config.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctrport.errors import InputError
from ctrport.model.mark import DEFAULT_MARK

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
DEFAULT_NAMESPACE = "default"
DEFAULT_ROOT = Path("/var/lib/ctrport")
DEFAULT_STATE = Path("/run/ctrport")
DEFAULT_CONFIG = Path("/etc/ctrport/config.toml")
DEFAULT_SYSCTL_DIRECTORY = Path("/run/sysctl.d")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every command needs to know of where it runs."""

    address: str = DEFAULT_ADDRESS
    namespace: str = DEFAULT_NAMESPACE
    root: Path = DEFAULT_ROOT
    state: Path = DEFAULT_STATE
    config: Config = field(default_factory=Config)

    def without_watcher(self) -> Settings:
        """Give the settings of a process that does not stay: it relays nothing."""
        return replace(self, config=replace(self.config, relay_ipv6_loopback=False))


def load(path: Path, *, required: bool) -> Config:
    """Read config.toml. InputError names the file and the key; a missing file is an error only if asked for."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if required:
            raise InputError(f"no configuration file at {path}") from None
        return Config()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    known = {
        "mark": _mark,
        "resync_seconds": _seconds,
        "timeout_seconds": _seconds,
        "adjust_nftables": _flag,
        "firewalld_zone": _zone,
        "cni_config": _directory,
        "cni_plugins": _directories,
        "reserve_ports": _flag,
        "sysctl_directory": _directory_or_none,
        "relay_ipv6_loopback": _flag,
    }
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}", hint=f"known keys: {', '.join(known)}")
        values[key] = known[key](f"{path}: {key}", value)
    return Config(**values, sysctl_directory_given="sysctl_directory" in values)


def _mark(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32 or value.bit_count() != 1:
        raise InputError(f"{where}: {value!r} is not a single bit of 32", hint=f"for example {DEFAULT_MARK:#x}")
    return value


def _seconds(where: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.1 <= value <= 86400:  # noqa: PLR2004
        raise InputError(f"{where}: {value!r} is not a number of seconds from 0.1 to 86400")
    return float(value)


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where}: {value!r} is neither true nor false")
    return value


def _zone(where: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_./-]{0,64}", value):
        raise InputError(f"{where}: {value!r} is not the name of a firewalld zone", hint="firewall-cmd --get-zones")
    return value


def _directory(where: str, value: Any) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or ":" in value:
        raise InputError(f"{where}: {value!r} is not the absolute path of a directory")
    return Path(value)


def _directory_or_none(where: str, value: Any) -> Path | None:
    return None if value == "" else _directory(where, value)


def _directories(where: str, value: Any) -> tuple[Path, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: {value!r} is not a list of directories", hint='for example ["/opt/cni/bin"]')
    return tuple(_directory(where, each) for each in value)
