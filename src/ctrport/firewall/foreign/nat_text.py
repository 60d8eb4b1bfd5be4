"""The ports that an iptables nat table translates, out of what iptables-save prints of it. Text in, data out.

Chains are followed from PREROUTING, where packets from outside come by. A rule counts when everything that it asks
is known here, and asks for nothing that singles out a few clients: what is not understood does not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctrport.firewall.foreign.scope import Scope, chain_place, of_host
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ctrport.model.bindings import IPAddress, Listener

TRANSLATES = frozenset({"DNAT", "REDIRECT"})
ENDS = frozenset({"ACCEPT", "RETURN"})
DEPTH = 32  # chains deep; the kernel lets no chain lead back to itself
# Whatever they ask, all packets of a new connection from some client pass: Docker's `! -i docker0`, kube-proxy's
# shares (statistic). The modules are those whose options are understood below.
PASSED_OVER = frozenset({"-i", "--mode", "--probability", "--every", "--packet"})
PASSED_OVER_NEGATED = frozenset({"-i", "-s", "-d"})
MODULES = frozenset({"tcp", "udp", "sctp", "multiport", "comment", "addrtype", "conntrack", "state", "statistic"})
PORTS = frozenset({"--dport", "--dports"})
_NUMBERS = {"6": Protocol.TCP, "17": Protocol.UDP, "132": Protocol.SCTP}
_COMMENT = re.compile(r' --comment (?:"(?:[^"\\]|\\.)*"|\S+)')


@dataclass(frozen=True, slots=True)
class Match:
    """One thing that a rule asks: option, whether it is negated, and its value."""

    option: str
    negated: bool
    value: str


@dataclass(frozen=True, slots=True)
class Table:
    """A nat table of one family."""

    chains: dict[str, list[str]]  # their rules, as iptables-save prints them
    name: str  # "iptables nat"
    local: Collection[IPAddress]  # addresses of this host

    def scopes(self, chain: str, scope: Scope, depth: int = DEPTH) -> Iterator[Scope]:
        """Give what is translated of the packets that enter a chain."""
        for line in self.chains[chain]:
            matches, target = read_rule(line)
            narrowed = self._narrowed(scope, matches, chain)
            if narrowed is None:
                continue
            if target in TRANSLATES:
                yield narrowed
            elif target in self.chains and depth:
                yield from self.scopes(target, narrowed, depth - 1)
            if target in ENDS and not any(match.option != "-m" for match in matches):
                return

    def _narrowed(self, scope: Scope, matches: list[Match], chain: str) -> Scope | None:
        found: Scope | None = scope
        for match in matches:
            if found is None:
                return None
            option, value = match.option, match.value
            if option in (PASSED_OVER_NEGATED if match.negated else PASSED_OVER):
                continue
            if option in ("--ctstate", "--state") and ("NEW" in value.split(",")) != match.negated:
                continue
            if match.negated:
                return None
            if option in PORTS:
                place = chain_place(chain, self.name)
                found = found.narrowed(ports=[_range(part) for part in value.split(",")], place=place)
            elif option == "-p":
                known = value in _NUMBERS or value in set(Protocol)
                found = found.narrowed(protocols=[_NUMBERS.get(value) or Protocol(value)]) if known else None
            elif option == "-d":
                found = found.narrowed(addresses=of_host([value], self.local))
            elif (option, value) != ("--dst-type", "LOCAL") and not (option == "-m" and value in MODULES):
                return None
        return found


def translated(text: str, family: int, name: str, local: Collection[IPAddress]) -> list[Listener]:
    """Give who translates which ports of this host, by what iptables-save prints of the nat table of a family."""
    chains: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith(":"):
            chains.setdefault(line[1:].split()[0], [])
        elif line.startswith("-A "):
            chains.setdefault(line.split(maxsplit=2)[1], []).append(line)
    if "PREROUTING" not in chains:
        return []
    scopes = Table(chains, name, local).scopes("PREROUTING", Scope(families=frozenset({family})))
    return [listener for scope in dict.fromkeys(scopes) for listener in scope.listeners()]


def read_rule(line: str) -> tuple[list[Match], str]:
    """Give what a rule asks, and its target."""
    matches: list[Match] = []
    negated, words = False, iter(_COMMENT.sub("", line).split()[2:])
    for word in words:
        if word == "!":
            negated = True
        elif word in ("-j", "-g"):
            return matches, next(words, "")  # what follows are the target's own options
        elif word.startswith("-"):
            matches.append(Match(word, negated, ""))
            negated = False
        elif matches:
            last = matches[-1]
            matches[-1] = Match(last.option, last.negated, f"{last.value} {word}".strip())
    return matches, ""


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high or low)
