"""Following a packet to one published port, from the host's listeners to the container's answer.

Each stage is looked at, whatever the ones before it say; the first that fails is the one to mend. What a packet of
another machine meets on the way through is read from the rules; what one of this host meets is tried, and traced.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ctrport.containerd.client import Client
from ctrport.doctor import attempt, container, firewalls, mappings, probe, settings
from ctrport.doctor.attempt import LOOPBACK4, LOOPBACK6
from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.doctor.journey import Journey, Outcome, Passed, Stage, Target
from ctrport.doctor.survey import survey
from ctrport.errors import CtrportError
from ctrport.firewall import ruleset
from ctrport.host import facts
from ctrport.model.bindings import Binding, State, socket_text
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from ctrport.config import Settings
    from ctrport.doctor.survey import Survey
    from ctrport.model.workload import Key, Task

HOST, MAPPING, RULES, FORWARD = "host", "mapping", "rules", "forwarding"


async def follow(wanted: Settings, target: Target) -> Journey:
    """Give the way of a packet to a port of this host."""
    found = await survey(wanted)
    if target.host_ip == LOOPBACK6:
        return await asyncio.to_thread(_ipv6_loopback, target)
    mine = [b for b in found.bindings if target.takes(b)]
    serving = [b for b in mine if b.state is State.ACTIVE]
    stages = [await asyncio.to_thread(_listeners, found, target)]
    if not serving:
        findings = [mappings.unserved(b) for b in mine] or await _stopped(found, target)
        return await asyncio.to_thread(_unserved, found, target, findings or [_unpublished(found, target)], stages)
    stages.append(_mapping(serving, mine))
    stages.append(_elements(found, serving))
    stages.append(await asyncio.to_thread(_forwarding, found))
    for key in dict.fromkeys(b.owner for b in serving):
        task, stage = await _task(wanted, key)
        stages.append(stage)
        if task is not None and stage.passed is Passed.YES:
            own = [b for b in serving if b.owner == key]
            stages += await asyncio.to_thread(list, container.stages(task, own, found.tracer))
    fine = all(stage.passed is not Passed.NO or stage.name == FORWARD for stage in stages)
    tries = await asyncio.to_thread(lambda: list(attempt.stages(found, target, serving, fine=fine)))
    stages += [stage for stage, _ in tries]
    return _concluded(target, stages, serving, [outcome for _, outcome in tries])


def _listeners(found: Survey, target: Target) -> Stage:
    there = [x for x in found.host.listeners if (x.port, x.protocol) == (target.port, target.protocol)]
    names = facts.named(there)
    lines = [f"{names.get(x, x).holder} on {socket_text(x.address, x.port, x.protocol)}" for x in there]
    what = f"no program of this host listens on {target.port}/{target.protocol}"
    return Stage(name=HOST, passed=Passed.YES, what=f"listening: {', '.join(lines)}" if lines else what)


def _unserved(found: Survey, target: Target, findings: list[Finding], stages: list[Stage]) -> Journey:
    """End the way where no mapping serves the port: tell why, and who answers instead."""
    stages.append(Stage(name=MAPPING, passed=Passed.NO, what=findings[0].what, findings=tuple(findings)))
    address = target.host_ip if target.host_ip and not target.host_ip.is_unspecified else LOOPBACK4
    outcome = None if target.protocol is Protocol.SCTP else probe.try_port(address, target.port, target.protocol)
    there = [x for x in found.host.listeners if (x.port, x.protocol) == (target.port, target.protocol)]
    by = "a program of this host" if there else "this host, where nobody listens"
    return Journey(target=target, stages=tuple(stages), outcome=outcome, by=by)


async def _stopped(found: Survey, target: Target) -> list[Finding]:
    """Give the containers that ask for the port and do not run."""
    findings: list[Finding] = []
    workloads = found.look.reconciler.snapshot.workloads if found.look else {}
    for key, workload in workloads.items():
        asked = [
            Binding(owner=key, mapping=m, host_port=m.host_port, state=State.WAITING) for m in workload.requests
        ]
        if workload.endpoint is None and any(target.takes(binding) for binding in asked):
            _, stage = await _task(found.settings, key)
            findings += stage.findings
    return findings


def _unpublished(found: Survey, target: Target) -> Finding:
    others = [b for b in found.active if b.host_port == target.port]
    also = [f"{socket_text(b.mapping.host_ip, target.port, b.mapping.protocol)} of {b.owner}" for b in others]
    return Finding(
        code=Code.NOT_PUBLISHED,
        severity=Severity.SERIOUS,
        what=f"no container publishes {target}",
        detail=f"published is {', '.join(also)}" if also else "",
        fix=("ctrport ps", f"# publish it: ctrport run -p {target.port}:CONTAINERPORT/{target.protocol} IMAGE"),
    )


def _ipv6_loopback(target: Target) -> Journey:
    """Try [::1], which no rule can serve: a program may."""
    outcome = probe.try_port(LOOPBACK6, target.port, target.protocol)
    if outcome is Outcome.ANSWERED:
        stage = Stage(name=MAPPING, passed=Passed.YES, what="a program of this host answers on [::1]")
        return Journey(target=target, stages=(stage,), outcome=outcome, by="a program of this host")
    finding = Finding(
        code=Code.IPV6_LOOPBACK,
        severity=Severity.SERIOUS,
        what="no packet from [::1] can leave the host, so none reaches a container",
        fix=(f"ctrport doctor 127.0.0.1:{target.port}/{target.protocol}  # use this address, or localhost",),
    )
    stage = Stage(name=MAPPING, passed=Passed.NO, what=finding.what, findings=(finding,))
    return Journey(target=target, stages=(stage,), outcome=outcome, by="this host")


def _mapping(serving: list[Binding], mine: list[Binding]) -> Stage:
    texts = []
    for binding in serving:
        place = socket_text(binding.mapping.host_ip, binding.host_port or 0, binding.mapping.protocol)
        texts.append(f"{place} -> container {binding.owner} port {binding.mapping.container_port}")
    texts += [f"{b.owner} {b.state}: {b.reason}" for b in mine if b not in serving]
    return Stage(name=MAPPING, passed=Passed.YES, what="; ".join(texts))


def _elements(found: Survey, serving: list[Binding]) -> Stage:
    """Say whether the kernel's maps have what the mappings need."""
    if found.nft is None:
        return Stage(name=RULES, passed=Passed.UNKNOWN, what="the kernel's table cannot be read")
    held = found.listing.elements if found.listing else {}
    wanted = [(name, e) for b in serving for name, e in ruleset.binding_elements(b)]
    lacking = [f"{name}: {e}" for name, e in wanted if held.get(name, {}).get(e.key) != e]
    if not lacking:
        what = "; ".join(f"map {name}: {e.key} : {e.value}" for name, e in wanted)
        return Stage(name=RULES, passed=Passed.YES, what=what)
    finding = Finding(
        code=Code.ELEMENT_MISSING,
        severity=Severity.SERIOUS,
        what=f"table {ruleset.ADDRESS} does not have what serves this port",
        detail="\n".join(lacking),
        fix=("ctrport sync",),
    )
    return Stage(name=RULES, passed=Passed.NO, what=finding.what, findings=(finding,))


def _forwarding(found: Survey) -> Stage:
    """Say what stops packets of other machines on their way through, by the settings and by others' rules."""
    try:
        findings = (*settings.check(found), *firewalls.check(found))
    except (CtrportError, OSError) as error:
        return Stage(name=FORWARD, passed=Passed.UNKNOWN, what=f"could not be looked at: {error}")
    serious = [finding for finding in findings if finding.serious]
    if not serious:
        seen = Passed.YES if found.privileged else Passed.UNKNOWN
        return Stage(name=FORWARD, passed=seen, what="no setting or firewall is seen to drop", findings=findings)
    return Stage(name=FORWARD, passed=Passed.NO, what=serious[0].what, findings=findings)


async def _task(wanted: Settings, key: Key) -> tuple[Task | None, Stage]:
    try:
        async with Client(wanted.address, timeout=wanted.config.timeout_seconds) as client:
            task = await client.task(key)
    except CtrportError as error:
        return None, Stage(name=container.RUNS, passed=Passed.UNKNOWN, what=f"{key}: {error.message}")
    finding = container.not_running(key, task, wanted.address)
    if finding is None and task is not None:
        return task, Stage(name=container.RUNS, passed=Passed.YES, what=f"{key} runs, pid {task.pid}")
    findings = (finding,) if finding else ()
    return task, Stage(name=container.RUNS, passed=Passed.NO, what=f"{key} does not run", findings=findings)


def _concluded(target: Target, stages: list[Stage], serving: list[Binding], outcomes: list[Outcome]) -> Journey:
    """Say how it ends for this host's own programs, by whom, and what stops others."""
    worst = next((o for o in outcomes if o not in (Outcome.ANSWERED, Outcome.SENT)), None)
    outcome = worst or (outcomes[0] if outcomes else None)
    by = ", ".join(dict.fromkeys(f"container {b.owner}" for b in serving))
    if worst is not None and any(s.name == RULES and s.passed is Passed.NO for s in stages):
        by = "this host: its rules lead nowhere"
    # The trace knows who it was.
    tried = [finding for stage in stages if stage.name == attempt.TRIED for finding in stage.findings]
    told = [finding.what for finding in tried if finding.code in (Code.HOST_DROP, Code.OTHER_TRANSLATION)]
    stopped = [stage.what for stage in stages if stage.name == FORWARD and stage.passed is Passed.NO]
    return Journey(
        target=target,
        stages=tuple(stages),
        outcome=outcome,
        by=told[0] if told else by,
        others="; ".join(stopped),
    )
