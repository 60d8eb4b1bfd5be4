"""nftables' nouns: table, chain, rule, map, set, element, transaction; and their text.

Data in, text out. Nothing here knows what a container is, and nothing here runs `nft`.
What nft prints of a rule differs between its versions, so a rule is compared by its comment, and beyond that by a
digest of what the kernel listed when it was written (`record`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


Count = tuple[int, int]  # packets, bytes


class Element(NamedTuple):
    """An element of a set or map, in nft's own words: `tcp . 8080 : 10.0.0.2 . 80`."""

    key: str
    value: str = ""  # empty in a set
    comment: str = ""

    def __str__(self) -> str:
        return self.counted(None)

    def counted(self, count: Count | None) -> str:
        """Give its text with a counter that begins with what was counted before."""
        counter = f" counter packets {count[0]} bytes {count[1]}" if count else ""
        comment = f' comment "{self.comment}"' if self.comment else ""
        value = f" : {self.value}" if self.value else ""
        return f"{self.key}{counter}{comment}{value}"


class Rule(NamedTuple):
    """One rule; the comment says in plain words what it is for, and names it when the kernel is compared."""

    text: str
    comment: str

    def __str__(self) -> str:
        return f'{self.text} comment "{self.comment}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A base chain when it has a hook, else one to jump to."""

    name: str
    hook: str = ""  # "type nat hook prerouting priority dstnat; policy accept;"
    rules: tuple[Rule, ...] = ()

    def render(self) -> str:
        lines = [f"chain {self.name} {{"]
        if self.hook:
            lines.append(f"\t{self.hook}")
        lines += [f"\t{rule}" for rule in self.rules]
        return "\n".join([*lines, "}"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A set, or a map when its elements have values."""

    name: str
    key_type: str  # "inet_proto . inet_service"
    value_type: str = ""
    counter: bool = False  # each element counts packets and bytes

    @property
    def kind(self) -> str:
        return "map" if self.value_type else "set"

    def render(self, elements: Iterable[Element] = (), counts: Counts | None = None) -> str:
        typeof = f"{self.key_type} : {self.value_type}" if self.value_type else self.key_type
        lines = [f"{self.kind} {self.name} {{", f"\ttype {typeof}"]
        if self.counter:
            lines.append("\tcounter")
        if body := ",\n\t\t".join(e.counted((counts or {}).get((self.name, e))) for e in elements):
            lines.append(f"\telements = {{\n\t\t{body}\n\t}}")
        return "\n".join([*lines, "}"])


Elements = dict[str, dict[str, Element]]  # set or map name -> key -> element
Counts = dict[tuple[str, Element], Count]  # of elements, each with the name of its map


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A whole table: declarations, chains and elements."""

    family: str
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]
    elements: Elements = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.family} {self.name}"

    def declaration(self, counts: Counts | None = None) -> str:
        """Give the table as `nft list` would: for people and documents."""
        parts = [s.render(self.elements.get(s.name, {}).values(), counts) for s in self.sets]
        parts += [c.render() for c in self.chains]
        body = "\n".join(f"\t{line}" if line else "" for line in "\n\n".join(parts).split("\n"))
        return f"table {self.address} {{\n{body}\n}}\n"

    def rebuild(self, counts: Counts | None = None) -> str:
        """Give a script that replaces whatever is there, in one transaction; elements go on counting from `counts`.

        The table is declared first so that its deletion cannot fail: nft 1.0.6 has no `destroy`.
        """
        return f"add table {self.address}\ndelete table {self.address}\n{self.declaration(counts)}"

    def digest(self) -> str:
        """Give a digest of the rules, which changes with every word of them."""
        return hashlib.sha256("\n".join(c.render() for c in self.chains).encode()).hexdigest()

    def listing(self) -> Listing:
        """Give what the kernel should list when it holds this table."""
        return Listing(
            chains={c.name: tuple(r.comment for r in c.rules) for c in self.chains},
            elements={s.name: dict(self.elements.get(s.name, {})) for s in self.sets},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What can be compared of a table: rules by their comments in order, elements in full.

    `fingerprint` stands for the rules as this kernel holds them, with their handles: of use only beside another one
    of the same table, and therefore no part of equality.
    """

    chains: dict[str, tuple[str, ...]]
    elements: Elements
    fingerprint: str = field(default="", compare=False)
    counts: Counts = field(default_factory=dict, compare=False)


@dataclass(slots=True)
class Transaction:
    """Element changes, rendered as one script: all of them happen, or none."""

    table: str
    deleted: Elements = field(default_factory=dict)
    added: Elements = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.deleted.values()) or any(self.added.values())

    def delete(self, name: str, element: Element) -> None:
        self.deleted.setdefault(name, {})[element.key] = element

    def add(self, name: str, element: Element) -> None:
        """Add an element; one that was deleted a moment ago, unchanged, is left alone."""
        if self.deleted.get(name, {}).get(element.key) == element:
            del self.deleted[name][element.key]
        else:
            self.added.setdefault(name, {})[element.key] = element

    def render(self, counts: Counts | None = None) -> str:
        """Give the script, deletions first: a key may change its value only so."""
        lines = [
            f"delete element {self.table} {name} {{ {', '.join(e.key for e in elements.values())} }}"
            for name, elements in self.deleted.items()
            if elements
        ]
        lines += [
            f"add element {self.table} {name} {{ {', '.join(_counted(name, elements, counts))} }}"
            for name, elements in self.added.items()
            if elements
        ]
        return "\n".join(lines) + "\n"


def _counted(name: str, elements: dict[str, Element], counts: Counts | None) -> Iterable[str]:
    return (element.counted((counts or {}).get((name, element))) for element in elements.values())


def difference(
    have: Mapping[str, dict[str, Element]], want: Mapping[str, dict[str, Element]], table: str
) -> Transaction:
    """Give the element changes that lead from one state to the other."""
    transaction = Transaction(table)
    for name in {**have, **want}:
        old, new = have.get(name, {}), want.get(name, {})
        for key, element in old.items():
            if new.get(key) != element:
                transaction.delete(name, element)
        for key, element in new.items():
            if old.get(key) != element:
                transaction.add(name, element)
    return transaction
