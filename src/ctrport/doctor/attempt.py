"""Asking for a published port as a program of this host would, and reading from nft's trace who decided."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ctrport.doctor import probe
from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.doctor.journey import Outcome, Passed, Stage, Target
from ctrport.errors import CtrportError
from ctrport.firewall import nftrace, ruleset
from ctrport.firewall.nftrace import ACCEPT, DROP
from ctrport.model.bindings import is_wildcard, socket_text
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.doctor.survey import Survey
    from ctrport.firewall.nftrace import Step
    from ctrport.model.bindings import Binding, IPAddress

LOOPBACK4, LOOPBACK6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
TRIED = "from this host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of asking once."""

    address: IPAddress  # of this host
    binding: Binding
    outcome: Outcome
    steps: tuple[Step, ...] = ()  # of the trace; none where there was none


def make(found: Survey, target: Target, serving: list[Binding]) -> list[Attempt]:
    """Ask once for each mapping and family. Blocks for a second each when nobody answers."""
    return [_try(found, address, binding) for address, binding in _addresses(found, target, serving)]


def _addresses(found: Survey, target: Target, serving: list[Binding]) -> Iterator[tuple[IPAddress, Binding]]:
    """Give an address of this host for each family that is served, as a program here would ask for it."""
    if target.protocol is Protocol.SCTP:
        return
    addresses = sorted(found.host.addresses or (), key=lambda a: (a.version, int(a)))
    for binding in serving:
        for family, served in ((4, binding.ipv4), (6, binding.ipv6)):
            own: IPAddress | None = LOOPBACK4
            if family == LOOPBACK6.version:
                own = next((a for a in addresses if a.version == family), None)
            for given in (target.host_ip, binding.mapping.host_ip):
                if given is not None and not is_wildcard(given) and given.version == family:
                    own = given
            if served is not None and own is not None:
                yield own, binding


def _try(found: Survey, address: IPAddress, binding: Binding) -> Attempt:
    """Ask for the port, traced where the kernel lets us."""
    protocol, port = binding.mapping.protocol, binding.host_port or 0
    if found.nft is not None and found.privileged:
        with suppress(CtrportError), probe.opened(address, protocol) as made:
            with nftrace.traced(found.nft, str(protocol), made.getsockname()[1]) as steps:
                outcome = probe.knock(made, address, port)
            return Attempt(address=address, binding=binding, outcome=outcome, steps=tuple(steps))
    return Attempt(address=address, binding=binding, outcome=probe.try_port(address, port, protocol))


def judge(found: Survey, one: Attempt, *, fine: bool) -> Stage:
    """Say what an attempt shows; `fine` says that nothing before it explains a failure."""
    what = f"{socket_text(one.address, one.binding.host_port or 0, one.binding.mapping.protocol)}: {one.outcome}"
    ours = [step for step in one.steps if step.table == ruleset.ADDRESS]
    if translated := next((s for s in ours if s.verdict == ACCEPT and s.handle is not None), None):
        what += f"; translated by {translated}"
    if one.outcome in (Outcome.ANSWERED, Outcome.SENT):
        return Stage(name=TRIED, passed=Passed.YES, what=what)
    findings: tuple[Finding, ...] = ()
    if dropping := next((step for step in reversed(one.steps) if step.verdict == DROP), None):
        findings = (_dropped(dropping, what),)
    elif not ours and (other := next((s for s in reversed(one.steps) if s.verdict == ACCEPT), None)):
        findings = (_elsewhere(other, what),)
    elif fine:
        findings = (_unexplained(found, what),)
    return Stage(name=TRIED, passed=Passed.NO, what=what, findings=findings)


def _dropped(step: Step, what: str) -> Finding:
    mend = f"nft delete rule {step.table} {step.chain} handle {step.handle}"
    if step.handle is None:
        mend = f"nft 'chain {step.table} {step.chain} {{ policy accept; }}'"
    return Finding(
        code=Code.HOST_DROP,
        severity=Severity.SERIOUS,
        what=f"packets of this host's own programs are dropped by {step}",
        detail=what,
        fix=(f"nft -a list chain {step.table} {step.chain}", mend),
    )


def _elsewhere(step: Step, what: str) -> Finding:
    return Finding(
        code=Code.OTHER_TRANSLATION,
        severity=Severity.SERIOUS,
        what=f"somebody else takes the packets before our rules see them: {step}",
        detail=what,
        fix=(
            f"nft -a list chain {step.table} {step.chain}",
            f"nft delete rule {step.table} {step.chain} handle {step.handle}",
        ),
    )


def _unexplained(found: Survey, what: str) -> Finding:
    return Finding(
        code=Code.NO_ANSWER,
        severity=Severity.SERIOUS,
        what="the container answers, and its published port does not",
        detail=what if found.privileged else f"{what}; without root more cannot be seen",
        fix=("ctrport sync", "ctrport doctor"),
    )
