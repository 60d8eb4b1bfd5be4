"""The ports that a native nftables table translates, out of what `nft -j list table` prints. JSON in, data out.

Chains, sets, maps and verdict maps are followed from the base chains at prerouting. A rule counts when everything
that it asks is known here, and asks for nothing that singles out a few clients: what is not understood does not
count. What libnftables writes is described in libnftables-json(5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ctrport.firewall.foreign.scope import Scope, of_host, table_place
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ctrport.model.bindings import IPAddress, Listener

Json = dict[str, Any]
FAMILIES = {"ip": {4}, "ip6": {6}, "inet": {4, 6}}
DEPTH = 16  # NFT_JUMP_STACK_SIZE
HARMLESS = frozenset({"counter", "log", "mangle"})
ENDS = frozenset({"accept", "return", "drop"})
SHARES = frozenset({"numgen", "jhash", "symhash"})  # keys by which load is spread
INTERFACES = frozenset({"iif", "iifname"})
VERSIONS = {"ipv4": 4, "ipv6": 6}
_NUMBERS = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}


@dataclass(slots=True, kw_only=True)
class Table:
    """A table as it was listed."""

    family: str
    name: str
    local: Collection[IPAddress]  # addresses of this host
    chains: dict[str, list[list[Json]]] = field(default_factory=dict)
    elements: dict[str, list[Any]] = field(default_factory=dict)  # of sets and maps

    def scopes(self, chain: str, scope: Scope, depth: int = DEPTH) -> Iterator[Scope]:
        """Give what is translated of the packets that enter a chain."""
        for statements in self.chains[chain]:
            yield from self._rule(statements, scope, depth)
            asked = set().union(*statements) - HARMLESS
            if asked and asked <= ENDS:
                return

    def _rule(self, statements: list[Json], scope: Scope, depth: int) -> Iterator[Scope]:
        scopes = [scope]
        for statement in statements:
            ((name, body),) = statement.items()
            if name == "match":
                scopes = [narrowed for each in scopes for narrowed in self._match(each, body)]
            elif name in ("dnat", "redirect"):
                yield from self._translation(body or {}, scopes)
                return
            elif name in ("jump", "goto", "vmap"):
                for each in scopes:
                    yield from self._follow(name, body, each, depth)
            elif name not in HARMLESS:
                return
            if not scopes:
                return

    def _follow(self, name: str, body: Json, scope: Scope, depth: int) -> Iterator[Scope]:
        """Follow a jump, or each of a verdict map."""
        if name != "vmap":
            if depth:
                yield from self.scopes(body["target"], scope, depth - 1)
            return
        for key, verdict in self._values(body["data"]):
            ((kind, inner),) = verdict.items()
            if kind in ("jump", "goto"):
                for narrowed in self._narrowed(scope, body["key"], [key]):
                    yield from self._follow(kind, inner, narrowed, depth)

    def _translation(self, body: Json, scopes: list[Scope]) -> Iterator[Scope]:
        """Give what a dnat or redirect takes: all that came of its family, or what its map has."""
        if "family" in body:
            families = FAMILIES[body["family"]]
            scopes = [n for scope in scopes if (n := scope.narrowed(families=families)) is not None]
        for part in (body.get("addr"), body.get("port")):
            if isinstance(part, dict) and "map" in part:
                lookup = part["map"]
                keys = [key for key, _ in self._values(lookup["data"])]
                scopes = [n for scope in scopes for n in self._narrowed(scope, lookup["key"], keys)]
        yield from scopes

    def _match(self, scope: Scope, match: Json) -> list[Scope]:
        if match["op"] == "!=":
            return [scope] if _is_passed_over_negated(match["left"]) else []
        if match["op"] not in ("==", "in"):
            return []
        return self._narrowed(scope, match["left"], self._values(match["right"]))

    def _narrowed(self, scope: Scope, left: Json, values: list[Any]) -> list[Scope]:
        """Give what is left where an expression has one of some values."""
        if "concat" in left:
            found = []
            for value in values:
                parts = [scope]
                for expression, part in zip(left["concat"], value["concat"], strict=True):
                    parts = [n for each in parts for n in self._narrowed(each, expression, [part])]
                found += parts
            return found
        narrowed = self._simply_narrowed(scope, left, values)
        return [] if narrowed is None else [narrowed]

    def _simply_narrowed(self, scope: Scope, left: Json, values: list[Any]) -> Scope | None:
        ((kind, what),) = left.items()
        if kind == "payload":
            protocol, name = what.get("protocol"), what.get("field")
            if name == "dport":
                protocols = None if protocol == "th" else [Protocol(protocol)]
                place = table_place(self.family, self.name)
                return scope.narrowed(protocols=protocols, ports=[_range(v) for v in values], place=place)
            if name == "daddr" and protocol in ("ip", "ip6"):
                networks = [text for value in values for text in _networks(value, self.local)]
                return scope.narrowed(families=FAMILIES[protocol], addresses=of_host(networks, self.local))
            if (protocol, name) in (("ip", "protocol"), ("ip6", "nexthdr")):
                return scope.narrowed(protocols=_protocols(values))
        elif kind == "meta" and what["key"] == "l4proto":
            return scope.narrowed(protocols=_protocols(values))
        elif kind == "meta" and what["key"] == "nfproto":
            return scope.narrowed(families=[VERSIONS[v] for v in values])
        passes = (
            kind in SHARES
            or (kind == "meta" and what["key"] in INTERFACES)
            or (kind == "fib" and what["result"] == "type" and "daddr" in what["flags"] and values == ["local"])
            or (kind == "ct" and what["key"] == "state" and "new" in values)
        )
        return scope if passes else None

    def _values(self, right: Any) -> list[Any]:
        """Give the values of a set, map or list, named or not, or of a single one, without what hangs on them."""
        if isinstance(right, str) and right.startswith("@"):
            right = self.elements[right[1:]]
        elif isinstance(right, dict) and "set" in right:
            right = right["set"]
        found = []
        for value in right if isinstance(right, list) else [right]:
            if isinstance(value, list):  # of a map
                found.append([_bare(value[0]), *value[1:]])
            else:
                found.append(_bare(value))
        return found


def translated(document: Json, local: Collection[IPAddress]) -> list[Listener]:
    """Give who translates which ports of this host, by the listing of one table.

    KeyError, TypeError or ValueError for words that are not those of libnftables' JSON.
    """
    table, bases = Table(family="", name="", local=local), []
    for item in document["nftables"]:
        ((kind, body),) = item.items()
        if kind == "table":
            table.family, table.name = body["family"], body["name"]
        elif kind == "chain":
            table.chains.setdefault(body["name"], [])
            if (body.get("type"), body.get("hook")) == ("nat", "prerouting"):
                bases.append(body["name"])
        elif kind == "rule":
            table.chains.setdefault(body["chain"], []).append(body["expr"])
        elif kind in ("set", "map"):
            table.elements[body["name"]] = body.get("elem", [])
    everything = Scope(families=frozenset(FAMILIES[table.family]))
    scopes = [scope for base in bases for scope in table.scopes(base, everything)]
    return [listener for scope in dict.fromkeys(scopes) for listener in scope.listeners()]


def _is_passed_over_negated(left: Json) -> bool:
    """Say whether packets of some client pass whatever it is that this must not be."""
    ((kind, what),) = left.items()
    if kind == "payload":
        return what.get("field") in ("saddr", "daddr")
    return kind == "meta" and what["key"] in INTERFACES


def _bare(value: Any) -> Any:
    return value["elem"]["val"] if isinstance(value, dict) and "elem" in value else value


def _range(value: Any) -> tuple[int, int]:
    low, high = value["range"] if isinstance(value, dict) else (value, value)
    return int(low), int(high)


def _protocols(values: list[Any]) -> list[Protocol]:
    known = {*Protocol}
    found = [_NUMBERS.get(value, value) for value in values]
    return [Protocol(value) for value in found if value in known]


def _networks(value: Any, local: Collection[IPAddress]) -> list[str]:
    if not isinstance(value, dict):
        return [value]
    if "prefix" in value:
        return [f"{value['prefix']['addr']}/{value['prefix']['len']}"]
    first, last = (ip_address(each) for each in value["range"])
    return [str(a) for a in local if a.version == first.version and int(first) <= int(a) <= int(last)]
