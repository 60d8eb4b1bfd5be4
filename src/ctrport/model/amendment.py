"""What `ctrport publish` and `unpublish` have changed about a container's ports since it was made.

Kept in a containerd extension of the container: neither an image nor `ctr` can set one, and it lives as long as
the container. Knows the JSON in it and how it is laid over what the annotation asks for. Must not know containerd,
nor what became of the ports.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ctrport.errors import InputError
from ctrport.model import ports
from ctrport.model.listing import join

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrport.model.ports import PortMapping

EXTENSION = "ctrport.io/publish"
VERSION = 1
LARGEST = 256 << 10  # bytes; containerd takes more, but reads and sends all of it with every look at the container
LATEST = 1 << 63  # nanoseconds since the epoch, exclusive: the year 2262


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """Mappings added, each with the time it was asked for, and those of the annotation that are withdrawn.

    What is in both is asked for: it was withdrawn first and added again, and so it is as new as its addition.
    """

    added: dict[PortMapping, int] = field(default_factory=dict)  # nanoseconds since the epoch
    removed: frozenset[PortMapping] = frozenset()

    def apply(self, asked: Iterable[PortMapping]) -> tuple[PortMapping, ...]:
        """Give what is asked for in the end: the annotation's mappings less the withdrawn, then the added."""
        kept = [mapping for mapping in asked if mapping not in self.removed]
        return tuple(dict.fromkeys((*kept, *self.added)))

    def publish(self, asked: Iterable[PortMapping], wanted: Iterable[PortMapping], now: int) -> Amendment:
        """Ask for more. What is asked for already keeps its place in the order of who came first."""
        there = set(self.apply(asked))
        new = {mapping: now for mapping in wanted if mapping not in there}
        return Amendment(added={**self.added, **new}, removed=self.removed)

    def unpublish(self, asked: Iterable[PortMapping], unwanted: Iterable[PortMapping]) -> Amendment:
        """Ask for less. Of what was withdrawn before, only what the annotation still says is kept."""
        gone = frozenset(unwanted)
        return Amendment(
            added={mapping: at for mapping, at in self.added.items() if mapping not in gone},
            removed=(self.removed | gone) & frozenset(asked),
        )

    def encode(self) -> bytes:
        """Give the extension's value, empty for no change at all. InputError when it grows too large."""
        if not self.added and not self.removed:
            return b""
        at: dict[int, list[PortMapping]] = {}
        for mapping, time in self.added.items():
            at.setdefault(time, []).append(mapping)
        value = {
            "version": VERSION,
            "added": [{"at": time, "publish": join(mappings)} for time, mappings in at.items()],
            "removed": join(sorted(self.removed, key=_order)),
        }
        encoded = json.dumps(value, separators=(",", ":")).encode("ascii")
        if len(encoded) > LARGEST:
            raise InputError(
                f"the changes come to {len(encoded)} bytes, and {LARGEST} is the most",
                hint="publish ranges of ports, or put them into the annotation",
            )
        return encoded


def read(value: bytes | None) -> Amendment:
    """Read an extension's value; empty or missing is no change. InputError for what we have not written."""
    if not value:
        return Amendment()
    try:
        raw = json.loads(value)
    except (ValueError, RecursionError) as error:  # ValueError: JSON and UTF-8 both
        raise _unreadable("it is not JSON") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("added"), list):
        raise _unreadable("it has not the shape of one")
    if raw.get("version") != VERSION:
        raise _unreadable(f"its version is {raw.get('version')!a:.20} and not {VERSION}")
    added: dict[PortMapping, int] = {}
    for entry in raw["added"]:
        at = entry.get("at") if isinstance(entry, dict) else None
        if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < LATEST:
            raise _unreadable("an addition has no time")
        for mapping in _mappings(entry.get("publish")):
            added.setdefault(mapping, at)
    return Amendment(added=added, removed=frozenset(_mappings(raw.get("removed"))))


def _order(mapping: PortMapping) -> tuple[str, str, int, int]:
    return mapping.protocol, str(mapping.host_ip), mapping.container_port, mapping.host_port or 0


def _mappings(text: Any) -> tuple[PortMapping, ...]:
    if not isinstance(text, str):
        raise _unreadable("it has not the shape of one")
    mappings, errors = ports.parse_list(text)
    if errors:
        raise _unreadable(errors[0].message)
    return mappings


def _unreadable(reason: str) -> InputError:
    return InputError(
        f"the changes of publish and unpublish in extension {EXTENSION} cannot be read and do not count: {reason}",
        hint="ctrport publish or unpublish writes it anew",
    )
