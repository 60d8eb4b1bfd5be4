"""What `ctrport run` was asked to do: the command line, checked, before anything is touched.

Without `from __future__ import annotations`: NamedTuple would compile the text of each.
"""

import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import NamedTuple

from ctrport.errors import InputError
from ctrport.model.ports import PortMapping, Protocol
from ctrport.run.names import check_identifier

UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
PULL_POLICIES = ("missing", "always", "never")
RESTART = re.compile(r"no|always|unless-stopped|on-failure(:[0-9]+)?")


class Options(NamedTuple):
    """One container to run; the fields are named as `docker run`'s options.

    No dataclass, as Python would write and compile six functions for 31 fields with every `run`.
    """

    image: str
    command: tuple[str, ...] = ()
    name: str | None = None
    publish: tuple[PortMapping, ...] = ()
    publish_all: bool = False
    expose: tuple[tuple[int, Protocol], ...] = ()
    detach: bool = False
    remove: bool = False
    interactive: bool = False
    tty: bool = False
    env: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()  # as ctr wants them
    workdir: str | None = None
    user: str | None = None
    entrypoint: str | None = None
    network: str = "default"
    ip: IPv4Address | None = None
    hostname: str | None = None
    dns: tuple[str, ...] = ()
    add_host: tuple[tuple[str, str], ...] = ()
    restart: str = "no"
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    cpus: float | None = None
    memory: int | None = None  # bytes
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    read_only: bool = False
    pull: str = "missing"
    rootfs: bool = False
    ctr_args: tuple[str, ...] = ()

    @property
    def shared_with(self) -> str | None:
        """Give the container whose network is shared, for `--network container:ID`."""
        kind, colon, target = self.network.partition(":")
        return target if kind == "container" and colon else None

    @property
    def bridged(self) -> bool:
        """Whether the container gets an address of its own, from us or from a CNI plugin."""
        return self.network not in ("host", "none") and self.shared_with is None

    @property
    def by_cni(self) -> bool:
        """Whether the host's CNI plugins connect it: `--network cni[:NAME]`."""
        return self.network.partition(":")[0] == "cni"

    def check(self) -> None:
        """Refuse combinations that make no sense. InputError names both sides."""
        self._check_network()
        if self.name is not None:
            check_identifier("--name", self.name)
        if self.pull not in PULL_POLICIES:
            raise InputError(f"--pull {self.pull!a} is not one of {', '.join(PULL_POLICIES)}")
        if self.user is not None and not re.fullmatch(r"[^:\s]+(:[^:\s]+)?", self.user):
            raise InputError(f"--user {self.user!a} is not USER[:GROUP]")
        if self.cpus is not None and not 0 < self.cpus < float("inf"):
            raise InputError(f"--cpus {self.cpus} is not a positive number")
        if not RESTART.fullmatch(self.restart):
            raise InputError(
                f"--restart {self.restart!a} is not a policy",
                hint="no, always, unless-stopped, on-failure or on-failure:N",
            )
        if self.remove and self.restart != "no":
            raise InputError(f"--rm and --restart {self.restart} contradict each other")
        if self.restart != "no" and not self.detach:
            raise InputError(f"--restart {self.restart} goes with -d: containerd restarts it, not this terminal")
        if self.restart != "no" and self.tty:
            raise InputError(
                f"--restart {self.restart} and -t contradict each other",
                hint="containerd cannot make a terminal when it restarts a task",
            )

    def _check_network(self) -> None:
        if self.shared_with is not None:
            check_identifier("--network container:", self.shared_with)
        wants_ports = bool(self.publish or self.publish_all)
        if wants_ports and (self.network == "none" or self.shared_with is not None):
            raise InputError(
                f"-p needs a network of the container's own, not --network {self.network}",
                hint="publish the ports on the container whose network is shared",
            )
        if self.by_cni:
            if not re.fullmatch(r"cni(:[^\s:]+)?", self.network):
                raise InputError(f"--network {self.network!a} is not cni or cni:NAME")
            if self.ip is not None:
                raise InputError("--ip goes with a network of ctrport: a CNI plugin chooses the address itself")
        elif self.bridged:
            check_identifier("--network", self.network)
        if self.ip is not None and not self.bridged:
            raise InputError(f"--ip goes with a bridge network, not --network {self.network}")


def volume(spec: str) -> str:
    """Turn `-v SOURCE:TARGET[:OPTIONS]` into ctr's mount."""
    parts = spec.split(":")
    if len(parts) not in (2, 3) or not all(parts) or "," in "".join(parts[:2]):
        raise InputError(f"-v {spec!a} is not SOURCE:TARGET[:ro]")
    source, target, *options = parts
    if not source.startswith(("/", ".")):
        raise InputError(
            f"-v {spec!a}: named volumes are not supported",
            hint="give a path: /srv/data:/data or ./data:/data",
        )
    words = options[0].split(",") if options else []
    unknown = set(words) - {"ro", "rw", "z", "Z", "rslave", "rshared", "rprivate"}
    if unknown:
        raise InputError(f"-v {spec!a}: unknown option {min(unknown)!a}", hint="ro or rw")
    if not target.startswith("/"):
        raise InputError(f"-v {spec!a}: the target {target!a} is not an absolute path")
    flags = [
        "rbind",
        "ro" if "ro" in words else "rw",
        *(w for w in words if w.startswith("rs") or w == "rprivate"),
    ]
    return bind_mount(str(Path(source).absolute()), target, flags)


def bind_mount(source: str, target: str, flags: Iterable[str] = ("rbind", "rw")) -> str:
    """Give ctr's words for a bind mount."""
    return f"type=bind,src={source},dst={target},options={':'.join(flags)}"


def mount(spec: str) -> str:
    """Turn Docker's `--mount type=bind,source=…,target=…,readonly` into ctr's; ctr's own form passes as it is."""
    names = {
        "source": "src",
        "destination": "dst",
        "target": "dst",
        "src": "src",
        "dst": "dst",
        "type": "type",
    }
    values: dict[str, str] = {"type": "bind"}
    options: list[str] = []
    for part in spec.split(","):
        key, equals, value = part.partition("=")
        if key in ("readonly", "ro"):
            if value not in ("false", "0"):
                options.append("ro")
        elif key == "options" and value:
            options += value.split(":")
        elif key in names and equals and value:
            values[names[key]] = value
        else:
            raise InputError(f"--mount {spec!a}: cannot read {part!a}")
    if "dst" not in values or (values["type"] == "bind" and "src" not in values):
        raise InputError(f"--mount {spec!a}: a bind mount needs source and target")
    if values["type"] not in ("bind", "tmpfs"):
        raise InputError(f"--mount {spec!a}: type {values['type']!a} is not bind or tmpfs")
    if values["type"] == "bind" and not {"bind", "rbind"} & set(options):
        options.insert(0, "rbind")
    values.setdefault("src", values["type"])
    tail = f",options={':'.join(options)}" if options else ""
    return f"type={values['type']},src={values['src']},dst={values['dst']}{tail}"


def environment(entries: Iterable[str], files: Iterable[Path]) -> tuple[str, ...]:
    """Give KEY=VALUE for `-e` and `--env-file`; a bare KEY takes this process's value, or is left out."""
    found: dict[str, str] = {}
    lines = [line for path in files for line in _env_lines(path)]
    for entry in (*lines, *entries):
        key, equals, value = entry.partition("=")
        if not key or any(c.isspace() for c in key):
            raise InputError(f"{entry!a} is not an environment entry", hint="KEY=VALUE, or KEY")
        if equals:
            found[key] = value
        elif key in os.environ:
            found[key] = os.environ[key]
    return tuple(f"{key}={value}" for key, value in found.items())


def memory(text: str) -> int:
    """Read `512m`, `2g`: bytes, with Docker's binary units."""
    matched = re.fullmatch(r"([0-9]{1,15})([a-z]?)b?", text.lower())
    if not matched or matched[2] not in UNITS or not int(matched[1]):
        raise InputError(f"--memory {text!a} is not a size", hint="for example 512m or 2g")
    return int(matched[1]) * UNITS[matched[2]]


def host_entry(text: str) -> tuple[str, str]:
    """Read `--add-host NAME:ADDRESS`."""
    name, _, address = text.partition(":")
    try:
        number = str(ip_address(address.strip("[]")))
    except ValueError:
        number = ""
    if not number or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"--add-host {text!a} is not NAME:ADDRESS", hint="for example db:192.0.2.7")
    return name, number


def key_value(option: str, text: str) -> str:
    """Check `--label` and `--annotation`: KEY=VALUE."""
    if not text.partition("=")[0].strip() or "=" not in text:
        raise InputError(f"{option} {text!a} is not KEY=VALUE")
    return text


def server_address(text: str) -> str:
    """Check `--dns`: an IP address."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise InputError(f"--dns {text!a} is not an IP address") from None


def _env_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--env-file {path}: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
