"""Native nftables tables of other people whose forward chain drops what we forward.

Told to table, chain and rule, with the commands that mend it. Done for the operator only when config.toml says
`adjust_nftables = true`: these tables are written by hand, and a rule that appears there by itself surprises.

Only chains are listed of everything, and rules only of chains at the forward hook. A chain drops when its policy
says so, or when its last rule drops without asking anything. Rules for a part of the traffic stay in force: ours
go behind them, right before that last rule or at the end.
"""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctrport.firewall.foreign import programs
from ctrport.firewall.foreign.obstacle import Obstacle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.firewall.foreign.obstacle import Passage

log = logging.getLogger(__name__)
FAMILIES = ("ip", "ip6", "inet")
# Tables with a manager of their own, which would undo what we write there, or trip over it.
MANAGED = ("ctrport", "ctrport-user", "firewalld", "docker-bridges", "kube-proxy", "netavark", "cni_hostport")
COMMENT = "ctrport: "  # how our rules in other people's chains begin
STATEMENTS = frozenset({"drop", "reject"})
HARMLESS = frozenset({"counter", "log"})  # beside a drop


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChain:
    """A filter chain at the forward hook."""

    family: str
    table: str
    name: str
    priority: int
    policy: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"

    @property
    def is_iptables(self) -> bool:
        """Whether iptables-nft made it: by name and priority, as nft itself tells (xt.c, is_nft_..._chain)."""
        return (self.family in ("ip", "ip6"), self.table, self.name, self.priority) == (
            True,
            "filter",
            "FORWARD",
            0,
        )

    @property
    def is_handwritten(self) -> bool:
        """Whether it is an operator's own: in no table that a program manages."""
        return not self.is_iptables and self.table not in MANAGED


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """How a chain drops what nothing in it has accepted."""

    by: str  # in words
    handle: int | None  # of the last rule; None when the policy drops


def forward_chains() -> list[BaseChain]:
    """Give all filter chains at the forward hook; no set and no rule is read for it."""
    return read_chains(json.loads(programs.run("nft", "-j", "list", "chains")))


def read_chains(document: dict[str, Any]) -> list[BaseChain]:
    """Give the filter chains at the forward hook of what `nft -j list chains` prints."""
    return [
        BaseChain(
            family=chain["family"],
            table=chain["table"],
            name=chain["name"],
            priority=chain["prio"],
            policy=chain.get("policy", "accept"),
        )
        for item in document["nftables"]
        if (chain := item.get("chain")) and chain.get("hook") == "forward" and chain["family"] in FAMILIES
    ]


def rules(passage: Passage) -> list[tuple[str, str]]:
    """Give the rules that let our packets pass, each with the comment by which it is known again."""
    mark = f"{passage.mark:#x}"
    found = [(f"ct mark and {mark} == {mark} ct status dnat accept", f"published ports, mark {mark}")]
    for bridge in sorted(passage.bridges):
        found.append((f'oifname "{bridge}" ct state established,related accept', f"answers to {bridge}"))
        found += [
            (f'iifname "{bridge}" oifname "{other}" return', f"{bridge} to {other}")
            for other in sorted(passage.isolated)
        ]
        found.append((f'iifname "{bridge}" accept', f"from {bridge}"))
    return [(rule, COMMENT + comment) for rule, comment in found]


def look(chain: BaseChain, passage: Passage) -> Obstacle | None:
    """Say how a chain drops our packets, and which commands let them pass; None when it does not."""
    drop, _, commands = _plan(chain, passage)
    if drop is None or not commands:
        return None
    return Obstacle(
        where=f"nftables table {chain.family} {chain.table}, chain {chain.name}",
        what=f"{drop.by} drops forwarded packets, and so published ports and what containers send",
        fix=tuple(shlex.join(["nft", line]) for line in commands),
    )


def ensure(chain: BaseChain, passage: Passage) -> None:
    """Let our packets pass a chain that drops them, in one transaction."""
    drop, old, commands = _plan(chain, passage)
    if drop is None:
        commands = []
    script = [
        *(f"delete rule {chain} handle {handle}" for handle in (old if commands or drop is None else ())),
        *commands,
    ]
    if script:
        programs.run("nft", "-f", "-", script="\n".join([*script, ""]))
        log.info("rules in nftables chain %s: %s", chain, "let our packets pass" if drop else "no longer needed")


def remove(chain: BaseChain) -> bool:
    """Take our rules out of a chain; says whether there were any."""
    old = _ours(_rules(chain))
    if old:
        script = "".join(f"delete rule {chain} handle {handle}\n" for handle in old.values())
        programs.run("nft", "-f", "-", script=script)
    return bool(old)


def _plan(chain: BaseChain, passage: Passage) -> tuple[Drop | None, list[int], list[str]]:
    """Give how a chain drops, our rules in it that are out of date, and the lines that add what is missing."""
    listed = _rules(chain)
    drop = find_drop(chain, listed)
    ours = _ours(listed)
    if drop is None:
        return None, list(ours.values()), []
    wanted = rules(passage)
    in_order = [rule.get("comment", "") for rule in listed if rule["handle"] != drop.handle]
    if in_order[len(in_order) - len(wanted) :] == [comment for _, comment in wanted]:
        return drop, [], []
    if _accepted_by_operator(listed, passage.mark, drop.handle) and not ours:
        return drop, [], []
    at = f"add rule {chain}" if drop.handle is None else f"insert rule {chain} handle {drop.handle}"
    return drop, list(ours.values()), [f'{at} {rule} comment "{comment}"' for rule, comment in wanted]


def find_drop(chain: BaseChain, listed: list[dict[str, Any]]) -> Drop | None:
    """Say how a chain drops what nothing in it accepts: by its last rule, else by its policy."""
    last = listed[-1] if listed else {"expr": []}
    statements = [name for statement in last["expr"] for name in statement]
    if statements and statements[-1] in STATEMENTS and set(statements[:-1]) <= HARMLESS:
        return Drop(by=f"the last rule (handle {last['handle']}: {statements[-1]})", handle=last["handle"])
    if chain.policy == "drop":
        return Drop(by="the policy (drop)", handle=None)
    return None


def _accepted_by_operator(listed: list[dict[str, Any]], mark: int, last: int | None) -> bool:
    """Say whether a rule accepts everything that has our mark: the operator has seen to it in his own words."""
    return any(_is_mark_accept(rule["expr"], mark) for rule in listed if rule["handle"] != last)


def _is_mark_accept(expressions: list[dict[str, Any]], mark: int) -> bool:
    marked = {"match": {"op": "==", "left": {"&": [{"ct": {"key": "mark"}}, mark]}, "right": mark}}
    others = [e for e in expressions if e != marked and not set(e) <= HARMLESS and not _is_status(e)]
    return marked in expressions and others == [{"accept": None}]


def _is_status(expression: dict[str, Any]) -> bool:
    return bool(expression.get("match", {}).get("left") == {"ct": {"key": "status"}})


def _rules(chain: BaseChain) -> list[dict[str, Any]]:
    document = json.loads(programs.run("nft", "-j", "list", "chain", chain.family, chain.table, chain.name))
    return [item["rule"] for item in document["nftables"] if "rule" in item]


def _ours(listed: Iterable[dict[str, Any]]) -> dict[str, int]:
    return dict(_our_handles(listed))


def _our_handles(listed: Iterable[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    for rule in listed:
        if rule.get("comment", "").startswith(COMMENT):
            yield rule["comment"], rule["handle"]
