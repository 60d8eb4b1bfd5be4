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
    from ctrport.firewall.nft import Nft
    from ctrport.firewall.nftrace import Step
    from ctrport.model.bindings import Binding, IPAddress

LOOPBACK4, LOOPBACK6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
TRIED = "from this host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of asking once."""

    outcome: Outcome
    steps: tuple[Step, ...] = ()  # of the trace; none where there was none

    @property
    def dropped(self) -> Step | None:
        """The rule or policy of this host that dropped it."""
        return next((step for step in reversed(self.steps) if step.verdict == DROP), None)


def ask(nft: Nft | None, address: IPAddress, port: int, protocol: Protocol) -> Attempt:
    """Ask at an address, traced if nftables is given and lets us. Blocks for a second when nobody answers."""
    if nft is not None:
        with suppress(CtrportError), probe.opened(address, protocol) as made:
            with nftrace.traced(nft, str(protocol), made.getsockname()[1]) as steps:
                outcome = probe.knock(made, address, port)
            return Attempt(outcome=outcome, steps=tuple(steps))
    return Attempt(outcome=probe.try_port(address, port, protocol))


def stages(found: Survey, target: Target, serving: list[Binding], *, fine: bool) -> Iterator[tuple[Stage, Outcome]]:
    """Ask once for each mapping and family; `fine` says that nothing so far explains a failure."""
    for address, binding in _addresses(found, target, serving):
        port, protocol = binding.host_port or 0, binding.mapping.protocol
        one = ask(found.tracer, address, port, protocol)
        yield _judged(found, one, f"{socket_text(address, port, protocol)}: {one.outcome}", fine=fine), one.outcome


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


def _judged(found: Survey, one: Attempt, what: str, *, fine: bool) -> Stage:
    ours = [step for step in one.steps if step.table == ruleset.ADDRESS]
    if translated := next((s for s in ours if s.verdict == ACCEPT and s.handle is not None), None):
        what += f"; translated by {translated}"
    if one.outcome in (Outcome.ANSWERED, Outcome.SENT):
        return Stage(name=TRIED, passed=Passed.YES, what=what)
    findings: tuple[Finding, ...] = ()
    if one.dropped:
        findings = (dropped(one.dropped, what),)
    elif not ours and (other := next((s for s in reversed(one.steps) if s.verdict == ACCEPT), None)):
        findings = (_elsewhere(other, what),)
    elif fine:
        findings = (_unexplained(found, what),)
    return Stage(name=TRIED, passed=Passed.NO, what=what, findings=findings)


def dropped(step: Step, what: str) -> Finding:
    """Say which rule of this host drops what its own programs send."""
    mend = f"nft delete rule {step.table} {step.chain} handle {step.handle}"
    if step.handle is None:
        mend = f"nft 'chain {step.table} {step.chain} {{ policy accept; }}'"
    return Finding(
        code=Code.HOST_DROP,
        severity=Severity.SERIOUS,
        what=f"{step} drops what this host's own programs send",
        detail=what,
        fix=(f"nft -a list chain {step.table} {step.chain}", mend),
    )


def _elsewhere(step: Step, what: str) -> Finding:
    return Finding(
        code=Code.OTHER_TRANSLATION,
        severity=Severity.SERIOUS,
        what=f"{step} takes the packets before our rules see them",
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
