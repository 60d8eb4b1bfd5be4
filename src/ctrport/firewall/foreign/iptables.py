"""Letting our packets through FORWARD of iptables, by iptables' own programs.

Both backends and both families, each only where it has a filter table and its FORWARD drops our packets (see
`trace`). What lets them pass is one chain of our own, and one jump to it from FORWARD:

- right before the first rule that would drop or log all of our packets, at the end where the policy does it. So
  rules for a part of the traffic (one client, one port) stay in force, and what passes is not logged as blocked.
- never before the jump to DOCKER-USER, and not from inside of it. That chain is the operator's: a drop there
  wins, an accept passes, and what it RETURNs goes on to our chain as it would go on to Docker's own.

Native nftables expressions are never written into these tables: `iptables -S` would then answer "table `filter'
is incompatible, use 'nft' tool", and Docker, kube-proxy and ufw could no longer work.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.firewall.foreign import programs, trace
from ctrport.firewall.foreign.obstacle import Obstacle
from ctrport.firewall.foreign.trace import OURS
from ctrport.host import pseudo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrport.firewall.foreign.native import BaseChain
    from ctrport.firewall.foreign.obstacle import Passage

log = logging.getLogger(__name__)
NFT, LEGACY = "nf_tables", "legacy"  # as `iptables --version` calls them
LOCK_WAIT = "5"  # seconds, for the lock that legacy's programs share
PROC_NET = Path("/proc/thread-self/net")


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter table: a family of a backend."""

    backend: str
    family: str  # "ip" or "ip6"

    def __str__(self) -> str:
        return f"{self.program() or own_name(self.backend, self.family)} table filter, chain FORWARD"

    def program(self) -> str | None:
        """Give the program that reads and writes this table, None when the host has none."""
        return program(self.backend, self.family)

    def read(self) -> dict[str, trace.Chain]:
        return trace.parse(programs.run(f"{self.program()}-save", "-t", "filter"))

    def write(self, lines: Iterable[str]) -> None:
        """Apply lines of iptables-restore in one transaction; nothing else of the table changes."""
        script = "\n".join(["*filter", *lines, "COMMIT", ""])
        programs.run(f"{self.program()}-restore", "--noflush", "-w", LOCK_WAIT, script=script)


def own_name(backend: str, family: str) -> str:
    """Give the name of the program that is for one backend alone."""
    return f"{family}tables-{'nft' if backend == NFT else 'legacy'}"


def program(backend: str, family: str) -> str | None:
    """Give the program that reads and writes a family's tables of a backend, None when the host has none."""
    own = own_name(backend, family)
    if programs.there(f"{own}-save"):
        return own
    plain = f"{family}tables"
    # Before 1.8 there was legacy only, and no word of it.
    if programs.there(plain) and (NFT in programs.run(plain, "--version")) == (backend == NFT):
        return plain
    return None


def legacy_families(table: str) -> list[str]:
    """Give the families that have a table of legacy's. Asking its programs would make it: the kernel is asked."""
    found = []
    for family in ("ip", "ip6"):
        try:
            names = pseudo.read(f"{PROC_NET}/{family}_tables_names").decode("ascii").split()
        except OSError:  # a kernel without them
            continue
        if table in names:
            found.append(family)
    return found


def filters(chains: Iterable[BaseChain]) -> list[Filter]:
    """Give the filter tables of this host."""
    native = [Filter(NFT, chain.family) for chain in chains if chain.is_iptables]
    return native + [Filter(LEGACY, family) for family in legacy_families("filter")]


def rules(passage: Passage) -> list[tuple[str, str]]:
    """Give the rules of our chain, each with its comment: what is written is compared by comments.

    What goes to a bridge that Docker closes to outsiders is left for Docker to judge.
    """
    mark = f"{passage.mark:#x}"
    lines = [
        (f"-m conntrack --ctstate DNAT -m connmark --mark {mark}/{mark} -j ACCEPT", f"published ports, mark {mark}")
    ]
    for bridge in sorted(passage.bridges):
        lines.append((f"-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", f"answers to {bridge}"))
        lines += [
            (f"-i {bridge} -o {other} -j RETURN", f"{bridge} to {other}") for other in sorted(passage.isolated)
        ]
        lines.append((f"-i {bridge} -j ACCEPT", f"from {bridge}"))
    lines += [(f"-i {bridge} -o {bridge} -j ACCEPT", f"within {bridge}") for bridge in sorted(passage.internal)]
    return [(line, f"ctrport: {comment}") for line, comment in lines]


def look(table: Filter, passage: Passage) -> Obstacle | None:
    """Say what of a table drops our packets and is not mended (yet)."""
    if table.program() is None:
        return _unreadable(table)
    where, script = _plan(table, passage)
    if where is None or not script:
        return None
    return Obstacle(where=str(table), what=f"{where.by} drops forwarded packets", fix=("ctrport sync",))


def ensure(table: Filter, passage: Passage) -> Obstacle | bool:
    """Let our packets pass where they are dropped, and take our chain away where nothing drops them any more.

    Says whether anything had to be written.
    """
    if table.program() is None:
        return _unreadable(table)
    where, script = _plan(table, passage)
    if script:
        table.write(script)
        if where is None:
            log.info("took chain %s out of %s: it drops nothing of ours any more", OURS, table)
        else:
            log.info("chain %s lets our packets through %s: %s would drop them", OURS, table, where.by)
    return bool(script)


def remove(table: Filter) -> bool:
    """Take our chain out of a table; says whether it was there."""
    if table.program() is None:
        return False
    script = _removal(table.read())
    if script:
        table.write(script)
    return bool(script)


def _unreadable(table: Filter) -> Obstacle:
    return Obstacle(
        where=str(table),
        what="nothing here can read it to see what it drops",
        fix=("apt-get install iptables",),
        unread=True,
    )


def _plan(table: Filter, passage: Passage) -> tuple[trace.Blocked | None, list[str]]:
    """Give what drops our packets, and the lines that are to be applied; none when all is as it should be."""
    chains = table.read()
    where = trace.blocked(chains, passage)
    if where is None:
        return None, _removal(chains)
    wanted = rules(passage)
    index = trace.place(chains, where)
    jumps = [i for i, rule in enumerate(chains["FORWARD"].rules) if rule.target == OURS]
    have = [rule.comment for rule in chains[OURS].rules] if OURS in chains else []
    if jumps == [index] and have == [comment for _, comment in wanted]:
        return where, []
    return where, [
        f":{OURS} - [0:0]",  # made, or emptied
        *(
            f"-A {OURS} {line.replace(' -j ', f' -m comment --comment {_quoted(text)} -j ')}"
            for line, text in wanted
        ),
        *(f"-D FORWARD -j {OURS}" for _ in jumps),
        f"-I FORWARD {index + 1} -j {OURS}",
    ]


def _removal(chains: dict[str, trace.Chain]) -> list[str]:
    jumps = sum(rule.target == OURS for rule in chains.get("FORWARD", trace.Chain()).rules)
    if OURS not in chains:
        return []
    return [*(f"-D FORWARD -j {OURS}" for _ in range(jumps)), f"-F {OURS}", f"-X {OURS}"]


def _quoted(text: str) -> str:
    return f'"{text}"'
