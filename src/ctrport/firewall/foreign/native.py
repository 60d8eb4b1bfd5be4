"""Native nftables tables of other people whose forward chain drops what we forward.

Told to table, chain and rule, with the commands that mend it. Done for the operator only when config.toml says
`adjust_nftables = true`: these tables are written by hand, and a rule that appears there by itself surprises.

Only chains are listed of everything, and rules only of chains at the forward hook and of those that they jump
to. What drops is found by `nft_trace`. Rules for a part of the traffic stay in force: ours go behind them, into the
base chain right before the rule that drops or leads to a drop, or at the end.
"""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ctrport.firewall.foreign import nft_trace, programs
from ctrport.firewall.foreign.obstacle import Obstacle

if TYPE_CHECKING:
    from ctrport.firewall.foreign.nft_trace import Drop, NftRule
    from ctrport.firewall.foreign.obstacle import Passage

log = logging.getLogger(__name__)
FAMILIES = ("ip", "ip6", "inet")
# Tables with a manager of their own, which would undo what we write there, or trip over it.
# firewalld_policy_drop is there while firewalld loads its rules anew, and keeps every new connection out till then.
MANAGED = (
    *("ctrport", "ctrport-user", "firewalld", "firewalld_policy_drop"),
    *("docker-bridges", "kube-proxy", "netavark", "cni_hostport"),
)
COMMENT = "ctrport: "  # how our rules in other people's chains begin
HARMLESS = frozenset({"counter", "log"})  # beside a verdict


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
    found += [
        (f'iifname "{bridge}" oifname "{bridge}" accept', f"within {bridge}") for bridge in sorted(passage.internal)
    ]
    return [(rule, COMMENT + comment) for rule, comment in found]


def look(chain: BaseChain, passage: Passage) -> Obstacle | None:
    """Say how a chain drops our packets, and which commands let them pass; None when it does not."""
    drop, _, commands = _plan(chain, passage)
    if drop is None or not commands:
        return None
    return Obstacle(
        where=f"nftables table {chain.family} {chain.table}, chain {chain.name}",
        what=f"{_by(chain, drop)} drops forwarded packets, and so published ports and what containers send",
        fix=tuple(shlex.join(["nft", line]) for line in commands),
    )


def ensure(chain: BaseChain, passage: Passage) -> bool:
    """Let our packets pass a chain that drops them, in one transaction; says whether anything had to be written."""
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
    return bool(script)


def remove(chain: BaseChain) -> bool:
    """Take our rules out of a chain; says whether there were any."""
    old = [rule["handle"] for rule in _rules(chain, chain.name) if _is_ours(rule)]
    if old:
        script = "".join(f"delete rule {chain} handle {handle}\n" for handle in old)
        programs.run("nft", "-f", "-", script=script)
    return bool(old)


def _plan(chain: BaseChain, passage: Passage) -> tuple[Drop | None, list[int], list[str]]:
    """Give how a chain drops, our rules in it that are out of date, and the lines that add what is missing."""
    listed = _rules(chain, chain.name)
    theirs = [rule for rule in listed if not _is_ours(rule)]
    ours = [rule["handle"] for rule in listed if _is_ours(rule)]
    drop = nft_trace.find_drop(chain.name, chain.policy, theirs, passage, partial(_rules, chain))
    if drop is None:
        return None, ours, []
    wanted = rules(passage)
    handles = [rule["handle"] for rule in listed]
    end = len(listed) if drop.before is None else handles.index(drop.before)
    before = [rule.get("comment", "") for rule in listed[:end]]
    in_place = before[len(before) - len(wanted) :] == [comment for _, comment in wanted]
    if in_place and len(ours) == len(wanted):
        return drop, [], []
    if not ours and any(_is_mark_accept(rule["expr"], passage.mark) for rule in theirs):
        return drop, [], []  # the operator has seen to it in his own words
    at = f"add rule {chain}" if drop.before is None else f"insert rule {chain} handle {drop.before}"
    return drop, ours, [f'{at} {rule} comment "{comment}"' for rule, comment in wanted]


def _by(chain: BaseChain, drop: Drop) -> str:
    if drop.handle is None:
        return f"the policy ({drop.verdict})"
    rule = f"the rule with handle {drop.handle} ({drop.verdict})"
    return rule if drop.chain == chain.name else f"{rule} in chain {drop.chain}, to which it leads,"


def _is_mark_accept(expressions: list[dict[str, Any]], mark: int) -> bool:
    marked = {"match": {"op": "==", "left": {"&": [{"ct": {"key": "mark"}}, mark]}, "right": mark}}
    others = [e for e in expressions if e != marked and not set(e) <= HARMLESS and not _is_status(e)]
    return marked in expressions and others == [{"accept": None}]


def _is_status(expression: dict[str, Any]) -> bool:
    return bool(expression.get("match", {}).get("left") == {"ct": {"key": "status"}})


def _rules(chain: BaseChain, name: str) -> list[NftRule]:
    """Give the rules of a chain of the same table."""
    document = json.loads(programs.run("nft", "-j", "list", "chain", chain.family, chain.table, name))
    return [item["rule"] for item in document["nftables"] if "rule" in item]


def _is_ours(rule: NftRule) -> bool:
    return bool(rule.get("comment", "").startswith(COMMENT))
