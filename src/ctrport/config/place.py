"""A value of config.toml and where it stands: what the checks of values need to say what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctrport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A value as tomllib gives it, its file, and the keys that lead to it."""

    value: Any
    file: Path
    text: str  # of the file
    keys: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        """Give the keys as in `policy.allow[0].host_ports`."""
        return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in self.keys).removeprefix(".")

    def error(self, fault: str, hint: str | None = None) -> InputError:
        """Give the error that names file, line, key and fault."""
        from ctrport.config.locate import line_of  # noqa: PLC0415 - most files have no fault

        line = line_of(self.text, self.keys)
        where = [str(self.file), *([f"line {line}"] if line else []), *([str(self)] if self.keys else [])]
        return InputError(": ".join([*where, fault]), hint=hint)

    def flag(self) -> bool:
        """Read true or false."""
        if not isinstance(self.value, bool):
            raise self.error(f"{self.value!r} is neither true nor false")
        return self.value

    def read(self, known: Mapping[str, Callable[[Place], Any]]) -> dict[str, Any]:
        """Read a table: each key by its own check, and no other key."""
        if not isinstance(self.value, dict):
            raise self.error(f"{self.value!r} is not a table")
        found = {}
        for key, value in self.value.items():
            place = self._within(key, value)
            if key not in known:
                name = f" of {self}" if self.keys else ""
                raise place.error(f"unknown key {key!r}", hint=f"known keys{name}: {', '.join(known)}")
            found[key] = known[key](place)
        return found

    def items(self, what: str, example: str) -> Iterator[Place]:
        """Yield what is in a list; `what` it is a list of, and how such a one looks."""
        if not isinstance(self.value, list):
            raise self.error(f"{self.value!r} is not a list of {what}", hint=f"for example {example}")
        for number, value in enumerate(self.value):
            yield self._within(number, value)

    def _within(self, key: str | int, value: Any) -> Place:
        return Place(value=value, file=self.file, text=self.text, keys=(*self.keys, key))
