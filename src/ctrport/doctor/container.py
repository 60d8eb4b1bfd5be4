"""The container's end of a published port: whether it runs, what listens in it, and whether that answers."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ctrport.doctor import attempt, inside
from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.doctor.journey import Outcome, Passed, Stage
from ctrport.model.ports import Protocol
from ctrport.model.workload import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.doctor.inside import Open
    from ctrport.firewall.nft import Nft
    from ctrport.model.bindings import Binding
    from ctrport.model.workload import Key, Task

RUNS, LISTENS, ANSWERS = "container", "listening", "its answer"


def not_running(key: Key, task: Task | None, address: str) -> Finding | None:
    """Say that a container's process does not run; None when it does."""
    ctr = ["ctr", "-a", address, "-n", key.namespace, "tasks"]
    if task is not None and task.status is Status.RUNNING:
        return None
    paused = task is not None and task.status in (Status.PAUSED, Status.PAUSING)
    fix = [shlex.join([*ctr, "resume" if paused else "start", *([] if paused else ["-d"]), key.id])]
    if task is not None and not paused:
        fix.insert(0, shlex.join([*ctr, "rm", "-f", key.id]))  # what has exited is still there, and in the way
    return Finding(
        code=Code.CONTAINER_NOT_RUNNING,
        severity=Severity.SERIOUS,
        what=f"container {key} is {task.status if task else 'not running: it has no task'}",
        fix=tuple(fix),
    )


def stages(task: Task, serving: Iterable[Binding], nft: Nft | None) -> Iterator[Stage]:
    """Follow a packet within the container that runs."""
    targets = {(b.mapping.container_port, a): b for b in serving for a in (b.ipv4, b.ipv6) if a is not None}
    bindings = list(dict.fromkeys(targets.values()))
    listens = True
    for port in dict.fromkeys(port for port, _ in targets):
        stage = _listening(task, [b for b in bindings if b.mapping.container_port == port])
        listens &= stage.passed is not Passed.NO
        yield stage
    for (port, address), binding in targets.items():
        protocol = binding.mapping.protocol
        if protocol is Protocol.SCTP:
            continue
        one = attempt.ask(nft, address, port, protocol)
        said = {Outcome.ANSWERED: "answers", Outcome.SENT: "does not refuse (UDP says no more)"}
        what = f"{address} port {port}, asked directly from this host: {said.get(one.outcome, one.outcome)}"
        findings: tuple[Finding, ...] = ()
        if one.dropped:
            findings = (attempt.dropped(one.dropped, what),)
        elif one.outcome not in said and listens:
            findings = (_silent(task, binding, what),)
        yield Stage(
            name=ANSWERS, passed=Passed.YES if one.outcome in said else Passed.NO, what=what, findings=findings
        )


def _listening(task: Task, bindings: list[Binding]) -> Stage:
    """Say whether something listens on a port, where clients can reach it."""
    owner, mapping = bindings[0].owner, bindings[0].mapping
    wanted = f"{mapping.container_port}/{mapping.protocol}"
    if mapping.protocol is Protocol.SCTP:
        return Stage(
            name=LISTENS, passed=Passed.UNKNOWN, what=f"{wanted}: the kernel does not list SCTP sockets here"
        )
    try:
        everything = inside.read(task.pid, mapping.protocol)
    except OSError as error:
        return Stage(name=LISTENS, passed=Passed.UNKNOWN, what=f"{wanted}: {error}")
    found = [o for o in everything if o.port == mapping.container_port]
    families = [
        f for f, served in ((4, any(b.ipv4 for b in bindings)), (6, any(b.ipv6 for b in bindings))) if served
    ]
    reached = [family for family in families if any(o.serves(family) for o in found)]
    if not reached:
        finding = _loopback_only(owner, wanted, found) if found else _nothing(owner, wanted, everything)
        return Stage(name=LISTENS, passed=Passed.NO, what=finding.what, findings=(finding,))
    where = " and ".join(sorted({f"{o.address}" for o in found}))
    findings = tuple(_one_family(owner, wanted, family) for family in families if family not in reached)
    what = f"something in container {owner} listens on {wanted} at {where}"
    return Stage(name=LISTENS, passed=Passed.YES, what=what, findings=findings)


def _loopback_only(owner: Key, wanted: str, found: list[Open]) -> Finding:
    where = " and ".join(sorted({str(o.address) for o in found}))
    return Finding(
        code=Code.CONTAINER_LOOPBACK_ONLY,
        severity=Severity.SERIOUS,
        what=f"the program in container {owner} listens on {wanted} at {where} only: nobody outside reaches it",
        detail="127.0.0.1 of a container is the container's own, and not the host's",
        fix=("# have it listen on 0.0.0.0 (and [::]): its option is often called --bind, --host or --listen",),
    )


def _nothing(owner: Key, wanted: str, everything: list[Open]) -> Finding:
    ports = sorted({o.port for o in everything if not o.address.is_loopback})
    return Finding(
        code=Code.CONTAINER_NOT_LISTENING,
        severity=Severity.SERIOUS,
        what=f"nothing in container {owner} listens on {wanted}",
        detail=f"it listens on {', '.join(map(str, ports[:10])) or 'no port at all'}",
        fix=(
            shlex.join(["ctrport", "-n", owner.namespace, "port", owner.id]),
            f"# publish the port that it listens on: ctrport run -p HOSTPORT:{ports[0] if ports else 'PORT'}",
        ),
    )


def _one_family(owner: Key, wanted: str, family: int) -> Finding:
    return Finding(
        code=Code.CONTAINER_ONE_FAMILY,
        severity=Severity.WARNING,
        what=f"the program in container {owner} does not listen on {wanted} over IPv{family}: refused there",
        fix=(f"# have it listen on {'[::]' if family == 6 else '0.0.0.0'} as well",),  # noqa: PLR2004, S104 - advice
    )


def _silent(task: Task, binding: Binding, what: str) -> Finding:
    return Finding(
        code=Code.CONTAINER_NO_ANSWER,
        severity=Severity.SERIOUS,
        what=f"container {binding.owner} does not answer: {what}",
        detail="a firewall of its own, perhaps: what drops in its network namespace is not this host's",
        fix=(f"nsenter --net=/proc/{task.pid}/ns/net nft list ruleset",),
    )
