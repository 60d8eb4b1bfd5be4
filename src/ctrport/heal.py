"""What others do to the kernel, noticed as it happens and put right: our table, our ways through theirs, settings.

Nobody is asked what should be: that is known since the last pass, so a table that was flushed is there again before
the next packet has been sent twice, also when containerd is away. Whose a transaction was is told by its number,
once nobody of ours is at work on the table.

Three things are kept, each by a task of its own. Kernel settings and iptables-legacy tell nobody of a change; they
are looked at every few seconds, which costs a few readings of files. The full passes stay as the belt.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from ctrport.errors import CtrportError
from ctrport.firewall import generation, keeper
from ctrport.firewall.foreign import iptables
from ctrport.firewall.monitor import Commit, Monitor
from ctrport.firewall.ruleset import ADDRESS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ctrport.service import Service

log = logging.getLogger(__name__)
LOOK = 2.0  # seconds between looks at what tells nobody
BACKLOG = 256  # transactions; of more only their number is news
RETRY = (1.0, 60.0)  # seconds until the monitor, or a repair that failed, is tried again
# Seconds between looks at other people's rules, which cost processes: the shortest; what it grows to while they
# change all the time (kube-proxy) and nothing is to be mended; and its share of what a look takes.
REST, LONGEST_REST, SHARE = 0.1, 15.0, 20
SPELL = 1.0  # seconds: `ufw reload` empties FORWARD ten times within two, by a program each
TABLE, FIREWALLS, SETTINGS = f"table {ADDRESS}", "other firewalls", "kernel settings"
LOST = Commit(generation=0, process="somebody")


class Healer:
    """Keeps what one service has brought into the kernel. `ready` is set once its first pass is through."""

    def __init__(self, service: Service, ready: asyncio.Event, look: Callable[[], Awaitable[None]]) -> None:
        """`look` is called every few seconds, for what else may have gone unnoticed."""
        self._service = service
        self._repairs = service.repairs
        self._ready = ready
        self._look = look
        self._of_ours: list[Commit] = []  # transactions on our table that were not looked at yet
        self._of_others: list[Commit] = []
        self._ours, self._others = asyncio.Event(), asyncio.Event()
        self._news = asyncio.Event()  # somebody has changed rules that are not ours

    async def run(self) -> None:
        """Keep everything until cancelled."""
        held = await asyncio.to_thread(keeper.hold)  # for as long as this runs
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            log.debug("%s", "the keeper is held" if held else "no keeper")
            await self._ready.wait()
            group.create_task(self._keep_table())
            group.create_task(self._keep_firewalls())
            group.create_task(self._keep_translations())
            group.create_task(self._keep_settings())

    # ------------------------------------------------------------------------------------------- noticing

    async def _follow(self) -> None:
        """Follow nftables' notifications; where that fails, periodic passes are what is left until it works."""
        pause, told = RETRY[0], False
        while True:
            try:
                with Monitor() as monitor:
                    if told:
                        log.info("following again what is done to nftables")
                        self._take(LOST)
                    told = False
                    async for commit in monitor.commits():
                        pause = RETRY[0]
                        self._take(commit)
            except OSError as error:
                if not told:
                    every = self._service.settings.config.resync_seconds
                    log.warning("cannot follow what is done to nftables, looking every %.0f s: %s", every, error)
                told = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY[1])

    def _take(self, commit: Commit) -> None:
        lost = commit.generation == 0
        if lost or ADDRESS in commit.touched:
            self._of_ours.append(commit)
            self._ours.set()
        if lost or commit.touched - {ADDRESS}:
            self._of_others.append(commit)
            self._others.set()
        for waiting in (self._of_ours, self._of_others):
            if len(waiting) > BACKLOG:
                waiting[:] = [LOST]

    # ------------------------------------------------------------------------------------------- our table

    async def _keep_table(self) -> None:
        pause = RETRY[0]
        while True:
            await self._ours.wait()
            self._ours.clear()
            commits, self._of_ours = self._of_ours, []
            begun = time.monotonic()
            try:
                found, left = await asyncio.to_thread(self._service.kernel.repair, commits, self._pause)
            except (CtrportError, OSError) as error:
                log.error("could not put our table right, next try in %.0f s: %s", pause, error)  # noqa: TRY400
                self._take(LOST)
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY[1])
                continue
            pause = RETRY[0]
            if left:  # a fight; if other damage comes before the pause is over, all is put right at once
                self._of_ours[:0] = commits
                asyncio.get_running_loop().call_later(left, self._ours.set)
                await asyncio.sleep(min(left, SHARE * (time.monotonic() - begun)))
            elif found is not None:
                self._repairs.note(TABLE, found, self._who(commits), time.monotonic() - begun)

    def _pause(self, what: str) -> float:
        return self._repairs.pause(TABLE, what)

    def _who(self, commits: list[Commit]) -> str:
        """Name who made transactions that are not ours."""
        own = self._service.kernel.generation.is_own
        names = dict.fromkeys(c.process or LOST.process for c in commits if not own(c.generation))
        return " and ".join([*names][:3]) or LOST.process

    # ----------------------------------------------------------------------------------- others' firewalls

    async def _keep_firewalls(self) -> None:
        rest, wrote = REST, False
        while True:
            waited = time.monotonic()
            await self._others.wait()
            begun = time.monotonic()
            if begun - waited > LONGEST_REST:
                rest = REST
            await asyncio.sleep(self._repairs.pause(FIREWALLS))
            self._others.clear()
            commits, self._of_others = self._of_others, []
            lost = any(commit.generation == 0 for commit in commits)
            touched = None if lost else frozenset[str]().union(*(commit.touched for commit in commits))
            try:
                mended = await self._service.mend_firewalls(touched)
            except (CtrportError, OSError) as error:
                log.error("could not look through other firewalls: %s", error)  # noqa: TRY400 - in our own words
                mended = []
            self._news.set()
            taken = time.monotonic() - begun
            for place in mended:
                what = f"our part was missing in {place}"
                self._repairs.note(FIREWALLS, what, self._who(commits), taken, spell=SPELL)
            # What was just written is told too, and looked at once more for nothing: that is no reason to rest.
            rest = REST if mended or wrote else min(max(2 * rest, SHARE * taken), LONGEST_REST)
            wrote = bool(mended)
            await asyncio.sleep(rest)

    async def _keep_translations(self) -> None:
        """Have it known which ports others translate; waits for the pass at work, which no repair does."""
        while True:
            await self._news.wait()
            self._news.clear()
            begun = time.monotonic()
            try:
                await self._service.review()
            except (CtrportError, OSError) as error:
                log.error("could not look whose ports others translate: %s", error)  # noqa: TRY400
            await asyncio.sleep(max(REST, SHARE * (time.monotonic() - begun)))

    # -------------------------------------------------------------------------------- what tells nobody

    async def _keep_settings(self) -> None:
        known = _legacy()
        while True:
            await asyncio.sleep(LOOK)
            if not self._repairs.pause(SETTINGS):
                begun = time.monotonic()
                if mended := self._service.mend_settings():
                    what = f"{', '.join(mended)} had another value"
                    self._repairs.note(SETTINGS, what, LOST.process, time.monotonic() - begun)
            if (now := _legacy()) != known:
                self._take(Commit(generation=-1, process="iptables-legacy", touched=frozenset({iptables.LEGACY})))
            known = now
            await self._look()


def _legacy() -> list[bytes]:
    """Give what changes with most changes of iptables-legacy's tables, where there are any."""
    return [*generation.legacy("nat"), *generation.legacy("filter")]
