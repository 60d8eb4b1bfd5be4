"""iptables-save's text, and where a packet of ours would be dropped in it. Text in, data out.

A small packet tracer: the packets that must pass are walked through FORWARD. Only rules that take *all* such
packets count. A rule that singles out (by address, port, mark, set, …) is what the operator says of a part of
the traffic, and stays in force: what lets our packets pass is put behind it, right before the first rule that
would drop or log all of them, or at the end where the policy drops them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.firewall.foreign.obstacle import Passage

OURS = "CTRPORT-FORWARD"
DOCKER_USER = "DOCKER-USER"
DROPS = frozenset({"DROP", "REJECT"})
LOGS = frozenset({"LOG", "NFLOG", "ULOG"})
NEW, DNAT, ESTABLISHED = "NEW", "DNAT", "ESTABLISHED"


@dataclass(slots=True)
class Rule:
    """A rule as far as it matters here."""

    text: str
    target: str = ""
    comment: str = ""
    interfaces: list[tuple[str, bool, str]] = field(default_factory=list)  # "-i" or "-o", negated, pattern
    states: list[tuple[bool, frozenset[str]]] = field(default_factory=list)
    protocol: bool = False  # for tcp or udp alone
    limited: bool = False  # by rate
    narrow: bool = False  # by anything else


@dataclass(slots=True)
class Chain:
    """A chain; only those at a hook have a policy."""

    policy: str = ""
    rules: list[Rule] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A kind of packet; an interface that is not known by name is empty."""

    into: str
    out: str
    states: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """Where packets of ours are dropped: rules are counted from 0 and without our own jump."""

    before: int  # our jump is to stand before this rule
    by: str  # the policy or rule that drops, as people would write it


def parse(text: str) -> dict[str, Chain]:
    """Read what iptables-save prints of one table."""
    chains: dict[str, Chain] = {}
    for line in text.splitlines():
        if line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains.setdefault(name, Chain()).policy = "" if policy == "-" else policy
        elif line.startswith("-A "):
            _, name, *words = shlex.split(line)
            chains.setdefault(name, Chain()).rules.append(_rule(line, words))
    return chains


def _rule(line: str, words: list[str]) -> Rule:
    rule, negated, rest = Rule(text=line), False, iter(words)
    for word in rest:
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            rule.target = next(rest)
            break  # what follows are the target's own options
        _take(rule, word, next(rest, ""), negated=negated)
        negated = False
    return rule


def _take(rule: Rule, option: str, value: str, *, negated: bool) -> None:
    """Take one option of a rule's matches; all that are known here have one value."""
    if option in ("-i", "-o"):
        rule.interfaces.append((option, negated, value))
    elif option in ("--ctstate", "--state"):
        rule.states.append((negated, frozenset(value.split(","))))
    elif option == "--comment":
        rule.comment = value
    elif option == "-p" and not negated:
        rule.protocol = True
        rule.narrow |= value not in ("tcp", "udp", "all")
    elif option in ("--limit", "--limit-burst"):
        rule.limited = True
    elif option != "-m":
        rule.narrow = True


def blocked(chains: dict[str, Chain], passage: Passage) -> Blocked | None:
    """Say where FORWARD drops packets that must pass; None when it drops none of them."""
    found = [where for packet in packets(passage) if (where := _walk_forward(chains, packet))]
    return min(found, key=lambda where: where.before, default=None)


def packets(passage: Passage) -> Iterator[Packet]:
    """Give every kind of packet that must pass, from and to the uplinks and an interface of unknown name."""
    for bridge in sorted(passage.internal):  # bridged ones, which br_netfilter shows to FORWARD
        yield Packet(into=bridge, out=bridge, states=frozenset({NEW}))
        yield Packet(into=bridge, out=bridge, states=frozenset({ESTABLISHED}))
    for outside in ("", *sorted(passage.uplinks)):
        for inside in sorted(passage.bridges | passage.endpoints):
            yield Packet(into=outside, out=inside, states=frozenset({NEW, DNAT}))
            yield Packet(into=inside, out=outside, states=frozenset({ESTABLISHED, DNAT}))
        for bridge in sorted(passage.bridges):
            yield Packet(into=bridge, out=outside, states=frozenset({NEW}))
            yield Packet(into=outside, out=bridge, states=frozenset({ESTABLISHED}))


def _walk_forward(chains: dict[str, Chain], packet: Packet) -> Blocked | None:
    forward = chains.get("FORWARD", Chain(policy="ACCEPT"))
    rules = [rule for rule in forward.rules if rule.target != OURS]
    logged: int | None = None
    for index, rule in enumerate(rules):
        verdict, logs = _apply(chains, rule, packet, {"FORWARD", OURS})
        if rule.target == DOCKER_USER:
            if verdict in DROPS:
                return None  # the operator's own word; nothing of ours goes before it
            logs = False
        if verdict == "RETURN":
            break
        if verdict == "ACCEPT":
            return None
        if logged is None and logs:
            logged = index
        if verdict in DROPS:
            return Blocked(before=index if logged is None else logged, by=f"rule {index + 1} ({rule.text})")
    if forward.policy in DROPS:
        return Blocked(before=len(rules) if logged is None else logged, by=f"policy {forward.policy}")
    return None


def _apply(chains: dict[str, Chain], rule: Rule, packet: Packet, seen: set[str]) -> tuple[str, bool]:
    """Give what a rule does with all such packets ("" when it lets them go on), and whether it logs them."""
    if not _matches(rule, packet):
        return "", False
    if rule.target in LOGS:
        return "", not rule.protocol
    if rule.limited or (rule.protocol and rule.target not in DROPS):
        return "", False
    if rule.target in chains and rule.target not in seen:
        logged = False
        for inner in chains[rule.target].rules:
            verdict, logs = _apply(chains, inner, packet, seen | {rule.target})
            logged |= logs
            if verdict:
                return ("" if verdict == "RETURN" else verdict), logged
        return "", logged
    return (rule.target if rule.target in DROPS | {"ACCEPT", "RETURN"} else ""), False


def _matches(rule: Rule, packet: Packet) -> bool:
    if rule.narrow:
        return False
    for option, negated, pattern in rule.interfaces:
        name = packet.into if option == "-i" else packet.out
        same = re.fullmatch(re.escape(pattern).replace(r"\+", ".*"), name) is not None and name != ""
        if same == negated:
            return False
    return all(bool(packet.states & wanted) != negated for negated, wanted in rule.states)


def place(chains: dict[str, Chain], where: Blocked) -> int:
    """Give the index in FORWARD that our jump is to have, never before the operator's DOCKER-USER."""
    targets = [rule.target for rule in chains["FORWARD"].rules if rule.target != OURS]
    behind = targets.index(DOCKER_USER) + 1 if DOCKER_USER in targets else 0
    return max(where.before, behind)
