"""The watcher as doctor sees it: whether one runs, answers, and keeps up.

Knows the control socket and the lock, and takes neither: a lock that was held for a look would keep a watcher from
starting.
"""

from __future__ import annotations

import asyncio
import enum
import shlex
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ctrport.control import SOCKET, connect
from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.errors import ConflictError, CtrportError
from ctrport.host import lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.config import Settings

PATIENCE = 8.0  # seconds for an answer: a watcher that is not ready takes 5 to say so
LOCK_PATIENCE = 2.0  # seconds for a command that has the lock, or a watcher that starts
BEHIND = 3  # full passes that may have been missed
JOURNAL = "journalctl -u ctrport -n 50"


class State(enum.Enum):
    """What became of the question."""

    ANSWERS = enum.auto()
    ABSENT = enum.auto()
    SILENT = enum.auto()
    FAILS = enum.auto()
    ELSEWHERE = enum.auto()
    HIDDEN = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watcher:
    """What is known of the watcher."""

    state: State
    pid: int | None = None  # of the writer that has the lock
    trouble: str = ""
    hint: str = ""
    containers: list[dict[str, Any]] = field(default_factory=list)  # as of its last pass
    uncertain: tuple[tuple[str, str], ...] = ()
    since_resync: float = 0.0  # seconds since its last full pass
    every: float | None = None  # seconds between full passes
    fighting: dict[str, str] = field(default_factory=dict)  # over what, and against which process

    @property
    def answers(self) -> bool:
        return self.state is State.ANSWERS


async def ask(settings: Settings) -> Watcher:
    """Ask the watcher what it publishes."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOCK_PATIENCE
    while True:
        found = await _ask(settings)
        if found.state is not State.ABSENT or found.pid is None:
            return found
        if loop.time() > deadline:
            return Watcher(state=State.SILENT, pid=found.pid, trouble="it has the lock, and no control socket")
        await asyncio.sleep(0.1)


async def _ask(settings: Settings) -> Watcher:
    pid = lock.holder(settings.state, lock.WRITER)
    try:
        async with asyncio.timeout(PATIENCE), connect(settings) as link:
            if link is None:
                return Watcher(state=State.ABSENT, pid=pid)
            reply = await link.call("bindings")
    except TimeoutError:
        return Watcher(state=State.SILENT, pid=pid, trouble=f"no answer within {PATIENCE:.0f} s")
    except ConflictError as error:
        return Watcher(state=State.ELSEWHERE, pid=pid, trouble=error.message, hint=error.hint or "")
    except CtrportError as error:
        hidden = isinstance(error.__cause__, PermissionError)
        return Watcher(state=State.HIDDEN if hidden else State.FAILS, pid=pid, trouble=error.message)
    return Watcher(
        state=State.ANSWERS,
        pid=pid,
        containers=reply["containers"],
        uncertain=tuple((namespace, name) for namespace, name in reply.get("uncertain", ())),
        since_resync=reply["since_resync"],
        every=reply.get("resync_seconds"),
        fighting=reply.get("fighting", {}),
    )


def check(watcher: Watcher, settings: Settings, *, containerd_answers: bool) -> Iterator[Finding]:
    """Say what is wrong with the watcher. What follows from a containerd that is away is not said once more."""
    who = f"pid {watcher.pid}" if watcher.pid else "its process is not known"
    if watcher.state is State.ABSENT:
        left = (settings.state / SOCKET).exists()
        yield Finding(
            code=Code.NO_WATCHER,
            severity=Severity.WARNING,
            what="no watcher runs: published ports do not follow containers or firewalls",
            detail=f"{settings.state / SOCKET} {'is left of one that was killed' if left else 'does not exist'}",
            fix=("systemctl start ctrport",),
        )
    elif watcher.state is State.SILENT:
        yield Finding(
            code=Code.WATCHER_STUCK,
            severity=Severity.SERIOUS,
            what=f"the watcher ({who}) does not answer: {watcher.trouble}",
            fix=("systemctl restart ctrport",),
        )
    elif watcher.state is State.FAILS:
        yield Finding(
            code=Code.WATCHER_NOT_READY,
            severity=Severity.SERIOUS,
            what=f"the watcher ({who}) runs and cannot work: {watcher.trouble}",
            fix=(JOURNAL,),
        )
    elif watcher.state is State.ELSEWHERE:
        yield Finding(
            code=Code.WATCHER_ELSEWHERE,
            severity=Severity.SERIOUS,
            what=f"another containerd is watched than was asked about: {watcher.trouble}",
            fix=(watcher.hint,),
        )
    elif watcher.answers:
        yield from _behind(watcher, settings)
        if containerd_answers:
            yield from _uncertain(watcher, settings)
        for thing, process in watcher.fighting.items():
            yield Finding(
                code=Code.UNDONE,
                severity=Severity.SERIOUS,
                what=f"{process} undoes again and again what published ports need: {thing}",
                detail="it is put right each time, after a pause of up to 30 s",
                fix=(
                    "journalctl -u ctrport -g 'again and again'",
                    "# end that program, or have it leave alone what is not its own",
                ),
            )


def _behind(watcher: Watcher, settings: Settings) -> Iterator[Finding]:
    age, every = watcher.since_resync, watcher.every or settings.config.resync_seconds
    if age > BEHIND * every:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - age))
        yield Finding(
            code=Code.WATCHER_BEHIND,
            severity=Severity.WARNING,
            what=f"the watcher's last full pass was {age:.0f} s ago, and there should be one every {every:g} s",
            detail=f"by the clock as it is now: {clock}",
            fix=(JOURNAL, "ctrport sync"),
        )


def _uncertain(watcher: Watcher, settings: Settings) -> Iterator[Finding]:
    if watcher.uncertain:
        names = [f"{namespace}/{name}" for namespace, name in watcher.uncertain]
        yield Finding(
            code=Code.TASKS_UNCERTAIN,
            severity=Severity.WARNING,
            what=f"containerd gives no clear answer about {len(names)} of its tasks: their ports stay as they were",
            detail=" ".join(names[:10]),
            fix=tuple(
                shlex.join(["ctr", "--address", settings.address, "-n", namespace, "tasks", "ls"])
                for namespace in sorted({namespace for namespace, _ in watcher.uncertain})
            ),
        )
