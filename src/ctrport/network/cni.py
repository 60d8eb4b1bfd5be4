"""Calling CNI plugins as the specification says (versions 0.4.0 and 1.0.0), and finding the host's configuration.

A plugin is a program: command and container in its environment, its network's configuration on standard input, a
result or an error on standard output. A list of them is called in order for ADD, each with the result of the one
before, and in the reverse order for DEL, each with the result of the whole ADD.

No capability is offered to plugins. Above all not `portMappings`: ports are published by our own rules, and portmap
would translate the same packets first.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctrport.errors import HostError, NotFoundError
from ctrport.network import netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)
Json = dict[str, Any]
ENDINGS = (".conf", ".conflist", ".json")  # as libcni reads them
INTERFACE = "eth0"
PATIENCE = 45.0  # seconds for one plugin; less than a client waits for the writer (control.PATIENCE)
OLDEST = "0.1.0"  # what a configuration without cniVersion is written in
WITHOUT_RESULT = ("0.1.0", "0.2.0", "0.3.0", "0.3.1")  # versions whose DEL is not given the result of ADD
INSTALL = "apt-get install containernetworking-plugins, or set cni_plugins in config.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One container on one network: all that ADD and DEL have to be told."""

    configuration: Json  # a list, as in a .conflist file
    container: str  # CNI_CONTAINERID
    netns: Path
    plugins: tuple[Path, ...]  # directories

    def check(self) -> None:
        """Look for every plugin, those for addresses too: what ADD would miss half-way, DEL would miss as well."""
        for plugin in self.configuration["plugins"]:
            ipam = plugin.get("ipam")
            kinds = [plugin["type"], ipam.get("type") if isinstance(ipam, dict) else None]
            for kind in kinds:
                if _is_file_name(kind):
                    self._find(kind)

    def add(self) -> Json:
        """Connect; gives the result of the last plugin. HostError with a plugin's own words when one fails."""
        result: Json | None = None
        for plugin in self.configuration["plugins"]:
            result = self._call("ADD", plugin, result)
        return result or {}

    def delete(self, result: Json | None) -> None:
        """Disconnect; may be called twice, without a namespace, and after an ADD that has failed.

        Every plugin is called, also after one that fails; then the first failure is raised.
        """
        failures = []
        if str(self.configuration["cniVersion"]) in WITHOUT_RESULT:
            result = None
        for plugin in reversed(self.configuration["plugins"]):
            try:
                self._call("DEL", plugin, result)
            except HostError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _call(self, command: str, plugin: Json, previous: Json | None) -> Json:
        configuration = {
            **plugin,
            "cniVersion": self.configuration["cniVersion"],
            "name": self.configuration["name"],
        }
        if previous is not None:
            configuration["prevResult"] = previous
        program = self._find(plugin["type"])
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container,
            # A namespace that is gone is told by an empty path; plugins stumble over a plain file.
            "CNI_NETNS": str(self.netns) if command == "ADD" or netns.is_mounted(self.netns) else "",
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": ":".join(map(str, self.plugins)),
        }
        text = json.dumps(configuration)
        log.debug(
            "%s %s <<<%s",
            " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
            program,
            shlex.quote(text),
        )
        tried = f"{command} of the CNI plugin {plugin['type']}, network {self.configuration['name']}"
        try:
            done = subprocess.run(
                [program],
                input=text.encode(),
                capture_output=True,
                check=False,
                timeout=PATIENCE,
                env={**os.environ, **environment},
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"{tried}: no answer in {PATIENCE:.0f} s") from error
        except OSError as error:
            raise HostError(f"{tried}: {program}: {error.strerror}", hint=INSTALL) from error
        if done.returncode != 0:
            raise HostError(f"{tried}, failed: {_reason(done)}", hint="journalctl; -v shows the call")
        if command == "DEL":
            return {}
        try:
            return dict(json.loads(done.stdout))
        except (ValueError, TypeError) as error:
            raise HostError(f"{tried}: its result is not a JSON object: {done.stdout[:200]!r}") from error

    def _find(self, kind: str) -> Path:
        for directory in self.plugins:
            if os.access(directory / kind, os.X_OK):
                return directory / kind
        where = ", ".join(map(str, self.plugins))
        raise HostError(
            f"the CNI plugin {kind} of network {self.configuration['name']} is in none of {where}", hint=INSTALL
        )


def configuration(directory: Path, name: str | None) -> Json:
    """Give the network of a name as a list, without a name the first of all. NotFoundError lists what there is."""
    found: dict[str, Json] = {}
    for path, raw in _readable(directory):
        network = {**raw, "plugins": raw["plugins"]} if "plugins" in raw else {**raw, "plugins": [raw]}
        if _is_network(network):
            found.setdefault(network["name"], {"cniVersion": OLDEST, **network})
        else:
            log.warning("%s is not a CNI network: it needs a name, and plugins that have a type", path)
    if not found:
        raise NotFoundError(
            f"no CNI network is configured in {directory}", hint="put one there, or set cni_config in config.toml"
        )
    if name is None:
        return next(iter(found.values()))
    if name not in found:
        raise NotFoundError(f"no CNI network named {name!r} in {directory}", hint=f"there: {', '.join(found)}")
    return found[name]


def _readable(directory: Path) -> Iterator[tuple[Path, Json]]:
    """Give the configurations that are JSON objects, by file name; others are told and passed over."""
    for path in sorted(directory.glob("*")):
        if path.suffix not in ENDINGS:
            continue
        try:
            raw = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            log.warning("cannot read the CNI configuration %s: %s", path, error)
            continue
        if isinstance(raw, dict):
            yield path, raw


def _is_network(raw: Json) -> bool:
    plugins = raw["plugins"]
    return (
        isinstance(raw.get("name"), str)
        and bool(raw["name"])
        and isinstance(plugins, list)
        and bool(plugins)
        and all(isinstance(p, dict) and _is_file_name(p.get("type")) for p in plugins)
    )


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    """Give a plugin's own words: the error object of the specification, else what it wrote."""
    try:
        error = json.loads(done.stdout)
        parts = [str(error[key]) for key in ("msg", "details") if error.get(key)]
        if parts:
            return ": ".join(parts)
    except (ValueError, TypeError, AttributeError):
        pass
    said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
    return said[-500:] or f"exit code {done.returncode}"
