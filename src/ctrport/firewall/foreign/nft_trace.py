"""nft's JSON of a chain's rules, and where a packet of ours would be dropped in it. Data in, data out.

The same small packet tracer as `trace` is for iptables, in nftables' words: the packets that must pass are walked
through a base chain and the chains that it jumps to. Only rules that take *all* such packets count: by interface,
by state, or by nothing. A rule that singles out is what the operator says of a part of the traffic.

Chains are asked for one by one, as a walk comes to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ctrport.firewall.foreign.trace import DNAT, packets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ctrport.firewall.foreign.obstacle import Passage
    from ctrport.firewall.foreign.trace import Packet

NftRule = dict[str, Any]
DROPS = ("drop", "reject")
JUMPS = ("jump", "goto")
VERDICTS = ("accept", "return", *DROPS, *JUMPS)
HARMLESS = ("counter", "mangle", "notrack")  # beside a verdict; anything else may take a part of the packets only
INTERFACES = {"iifname": "into", "iif": "into", "oifname": "out", "oif": "out"}
# Each of these takes a part of what is published: a drop of it matters, an accept of it is not enough.
PARTS = (
    {"meta": {"key": "nfproto"}},
    {"meta": {"key": "l4proto"}},
    {"payload": {"protocol": "ip", "field": "protocol"}},
    {"payload": {"protocol": "ip6", "field": "nexthdr"}},
)
PART_VALUES = frozenset({"ipv4", "ipv6", "tcp", "udp"})
MAX_CHAINS = 64  # of one table that are looked into


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Where a base chain drops packets that must pass."""

    chain: str  # whose rule or policy it is
    verdict: str
    handle: int | None  # of that rule; None when the base chain's policy drops
    before: int | None  # handle of the rule of the base chain that accepts must stand before; None for at its end


class Outcome(NamedTuple):
    """What becomes of a packet in a chain or by a rule; without a verdict it goes on."""

    verdict: str = ""
    chain: str = ""
    handle: int | None = None
    logs: bool = False


class _Walk:
    """One packet's way through the chains of a table."""

    def __init__(self, packet: Packet, read: Callable[[str], list[NftRule]]) -> None:
        self._packet = packet
        self._read = read
        self._known: dict[str, Outcome] = {}  # what becomes of this packet in a chain that is jumped to

    def rule(self, rule: NftRule) -> Outcome:
        """Give what a rule does with all such packets."""
        verdict, target, logs = _decide(rule["expr"], self._packet)
        if verdict not in JUMPS:
            return Outcome(verdict, rule["chain"], rule["handle"], logs)
        inner = self._chain(target)
        ends = verdict == "goto" and not inner.verdict  # the end of that chain is the end of this one
        return inner._replace(verdict="return" if ends else inner.verdict, logs=logs or inner.logs)

    def _chain(self, name: str) -> Outcome:
        if name not in self._known:
            self._known[name] = Outcome()  # for a circle, which the kernel does not load
            self._known[name] = self._follow(self._read(name))
        return self._known[name]

    def _follow(self, rules: Iterable[NftRule]) -> Outcome:
        logs = False
        for rule in rules:
            found = self.rule(rule)
            logs |= found.logs
            if found.verdict:
                return found._replace(verdict="" if found.verdict == "return" else found.verdict, logs=logs)
        return Outcome(logs=logs)


def find_drop(
    base: str, policy: str, rules: list[NftRule], passage: Passage, read: Callable[[str], list[NftRule]]
) -> Drop | None:
    """Say where a base chain first drops packets that must pass; None when it drops none of them.

    `rules` are those of the base chain without ours, `read` gives those of a chain that it jumps to.
    """
    chains: dict[str, list[NftRule]] = {base: []}

    def look(name: str) -> list[NftRule]:
        if name not in chains:
            chains[name] = read(name) if len(chains) <= MAX_CHAINS else []
        return chains[name]

    found = [drop for packet in packets(passage) if (drop := _walk(base, policy, rules, _Walk(packet, look)))]
    order = {rule["handle"]: index for index, rule in enumerate(rules)}
    return min(found, key=lambda drop: order.get(drop.before, len(rules)), default=None)


def _walk(base: str, policy: str, rules: list[NftRule], walk: _Walk) -> Drop | None:
    logged: int | None = None
    for rule in rules:
        found = walk.rule(rule)
        if found.verdict == "accept":
            return None
        if found.verdict == "return":
            break
        if logged is None and found.logs:
            logged = rule["handle"]
        if found.verdict in DROPS:
            before = rule["handle"] if logged is None else logged
            return Drop(chain=found.chain, verdict=found.verdict, handle=found.handle, before=before)
    return Drop(chain=base, verdict="drop", handle=None, before=logged) if policy == "drop" else None


def _decide(expressions: list[dict[str, Any]], packet: Packet) -> tuple[str, str, bool]:
    """Give the verdict of a rule, where it leads, and whether it logs; no verdict when it takes not all packets."""
    whole, logs = True, False
    for expression in expressions:
        ((name, value),) = expression.items()
        if name == "match":
            matched = _matches(value, packet)
            if not matched:
                return "", "", False
            whole = whole and matched != "part"
        elif name == "log":
            logs = whole
        elif name == "vmap":
            name, value = _looked_up(value, packet)
            if not name:
                return "", "", logs
        elif name not in (*HARMLESS, *VERDICTS):
            return "", "", False
        if name in VERDICTS and (whole or name in DROPS):
            return name, value["target"] if name in JUMPS else "", logs
    return "", "", logs


def _matches(match: dict[str, Any], packet: Packet) -> str:
    """Say whether a match takes all such packets ("all"), a part that matters ("part"), or none or few ("")."""
    left, values = match["left"], _values(match["right"])
    if values is None or match["op"] not in ("==", "!=", "in"):
        return ""
    if left in PARTS:
        return "part" if match["op"] == "==" and PART_VALUES.issuperset(values) else ""
    found = _meets(left, values, packet)
    return "all" if found is not None and found == (match["op"] != "!=") else ""


def _meets(left: Any, values: list[str], packet: Packet) -> bool | None:
    """Say whether one of some values is the packet's; None for what is not known of packets."""
    if "&" in left:
        left = left["&"][0]
    key = (left.get("meta") or left.get("ct") or {}).get("key")
    if "meta" in left and key in INTERFACES:
        name = getattr(packet, INTERFACES[key])
        return name != "" and any(_names(value, name) for value in values)
    if left == {"ct": {"key": "state"}}:
        return any(value.upper() in packet.states for value in values)
    if left == {"ct": {"key": "status"}} and values == ["dnat"]:
        return DNAT in packet.states
    return None


def _names(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _looked_up(vmap: dict[str, Any], packet: Packet) -> tuple[str, Any]:
    """Give the verdict that a map with its elements in the rule has for a packet."""
    data = vmap["data"]
    for key, verdict in data.get("set", ()) if isinstance(data, dict) else ():
        values = _values(key)
        if values and _meets(vmap["key"], values, packet):
            ((name, value),) = verdict.items()
            return name, value
    return "", None


def _values(right: Any) -> list[str] | None:
    """Give the values of the right side of a match; None for what is not written there, such as a named set."""
    if isinstance(right, dict) and "elem" in right:
        right = right["elem"]["val"]
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    listed = right if isinstance(right, list) else [right]
    values = [value["elem"]["val"] if isinstance(value, dict) and "elem" in value else value for value in listed]
    named = any(not isinstance(value, str | int) or str(value).startswith("@") for value in values)
    return None if named else [str(value) for value in values]
