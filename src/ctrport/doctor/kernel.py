"""What this kernel and its nftables can do: tried, not looked up.

The kernel is given our own table in a transaction that is never committed. Only when it refuses are the parts tried
one by one, to name what is missing.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.firewall import conntrack, ruleset
from ctrport.firewall.foreign import programs
from ctrport.firewall.ruleset import Links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ctrport.doctor.survey import Survey

OLDEST_KERNEL = (5, 7)  # `iifname` in a postrouting chain
OLDEST_NFT = (1, 0, 6)  # the oldest that the tests run with
TRIAL = "inet ctrport-trial"
_NAT = f"add chain {TRIAL} a {{ type nat hook prerouting priority -100; }}"
_FILTER = f"add chain {TRIAL} a {{ type filter hook forward priority 0; }}"
# Kernel module -> what needs it.
FEATURES = {
    "nf_tables": (),
    "nft_chain_nat": (_NAT,),
    "nft_fib_inet": (_FILTER, f"add rule {TRIAL} a fib daddr type local accept"),
    "nft_ct": (_FILTER, f"add rule {TRIAL} a ct mark 1 ct status dnat accept"),
    "nft_nat": (_NAT, f"add rule {TRIAL} a meta nfproto ipv4 dnat ip to 192.0.2.1"),
    "nft_masq": (
        f"add chain {TRIAL} a {{ type nat hook postrouting priority 100; }}",
        f"add rule {TRIAL} a masquerade",
    ),
}


def check(survey: Survey) -> Iterator[Finding]:
    """Say what kernel and nftables lack."""
    yield from too_old(os.uname().release)
    if survey.nft is not None:
        yield from missing(survey.nft.refusal)
    elif survey.nft_error is not None and survey.privileged:
        yield Finding(
            code=Code.NFTABLES_MISSING,
            severity=Severity.SERIOUS,
            what=survey.nft_error.message,
            detail=survey.nft_error.hint or "",
            fix=("apt-get install --no-install-recommends -y python3-nftables nftables",),
        )
    if survey.privileged:
        yield from _flows()
    if programs.there("nft"):
        yield from untried(programs.run("nft", "--version"))


def too_old(release: str) -> Iterator[Finding]:
    """Judge a kernel by its release."""
    if _numbers(release)[:2] < OLDEST_KERNEL:
        yield Finding(
            code=Code.KERNEL_TOO_OLD,
            severity=Severity.SERIOUS,
            what=f"Linux {release} is older than {'.'.join(map(str, OLDEST_KERNEL))}, which the rules need",
            fix=("# start a newer kernel",),
        )


def untried(version: str) -> Iterator[Finding]:
    """Judge nftables by what `nft --version` prints."""
    if _numbers(version) < OLDEST_NFT:
        yield Finding(
            code=Code.NFTABLES_OLD,
            severity=Severity.WARNING,
            what=f"{version.strip()} is older than {'.'.join(map(str, OLDEST_NFT))}, the oldest that was tried",
            fix=("apt-get install --no-install-recommends -y nftables",),
        )


def missing(refusal: Callable[[str], str]) -> Iterator[Finding]:
    """Say which part of nf_tables the kernel lacks; `refusal` gives its words about a script, "" for none."""
    whole = refusal(ruleset.build((), Links()).rebuild())
    if not whole:
        return
    said = {part: refusal("\n".join([f"add table {TRIAL}", *lines, ""])) for part, lines in FEATURES.items()}
    lacking = [part for part, words in said.items() if words]
    if lacking[:1] == ["nf_tables"]:
        lacking = ["nf_tables"]  # without it nothing else can be tried
    yield Finding(
        code=Code.KERNEL_FEATURE_MISSING,
        severity=Severity.SERIOUS,
        what=f"this kernel does not take our rules: it lacks {', '.join(lacking) or 'something that they need'}",
        detail=said[lacking[0]] if lacking else whole,
        fix=(f"modprobe -a {' '.join(lacking)}",) if lacking else (),
    )


def _flows() -> Iterator[Finding]:
    try:
        conntrack.look()
    except OSError as error:
        yield Finding(
            code=Code.KERNEL_FEATURE_MISSING,
            severity=Severity.WARNING,
            what=f"the kernel does not tell of its flows, so UDP clients may stay with earlier containers: {error}",
            fix=("modprobe nf_conntrack_netlink",),
        )


def _numbers(text: str) -> tuple[int, ...]:
    """Give the first version number in a text: (1, 0, 6) of `nftables v1.0.6 (Lester Gooch #5)`."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()
