"""The daemon: events in, passes out.

Order of a start: take the lock, subscribe, list and apply, and only then tell systemd READY. SIGTERM stops and
leaves the rules (stopping is not cleaning up), SIGHUP reads the configuration again and makes a full pass. One task
makes all the passes; the others only say what has become doubtful.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ctrport import control
from ctrport.containerd import decode
from ctrport.containerd.client import Client
from ctrport.containerd.created import Created
from ctrport.containerd.events import Marker, Watch
from ctrport.errors import ConflictError, CtrportError, HostError
from ctrport.firewall.foreign import firewalld
from ctrport.firewall.nft import LibNft
from ctrport.heal import Healer
from ctrport.host import lock, memory
from ctrport.host.notify import notify
from ctrport.host.relay import Relay
from ctrport.host.reservation import Reservation
from ctrport.model.workload import Start, Status
from ctrport.network import proc
from ctrport.place import Place
from ctrport.reconcile import Reconciler
from ctrport.reload import reload
from ctrport.service import Service

if TYPE_CHECKING:
    from ctrport.config import Settings
    from ctrport.containerd.decode import Event
    from ctrport.model.workload import Container, Key

log = logging.getLogger(__name__)
RETRY = (0.1, 10.0)  # seconds between failed passes: the first pause, and the longest
LOCK_PATIENCE = 5.0  # seconds for who holds the lock and does not answer to let go of it
SECOND_LOOK = 2.0  # seconds until a task is asked about again that gave no clear answer
STOP_PATIENCE = 10.0  # seconds for the pass at work to end before the daemon does


@dataclass(slots=True)
class Doubt:
    """What may not be as it should: named containers, or everything."""

    containers: dict[Key, Start | None] = field(default_factory=dict)  # with a start if nothing else was told
    everything: bool = False
    configuration: bool = False  # config.toml may say something else
    _raised: asyncio.Event = field(default_factory=asyncio.Event)

    def raise_all(self) -> None:
        self.everything = True
        self._raised.set()

    def raise_anew(self) -> None:
        self.configuration = True
        self.raise_all()

    def raise_about(self, key: Key, start: Start | None = None) -> None:
        self.containers[key] = start if key not in self.containers else None
        self._raised.set()

    async def take(self) -> tuple[dict[Key, Start | None], bool]:
        """Wait for doubt and take all there is."""
        await self._raised.wait()
        taken = self.containers, self.everything
        self.containers, self.everything = {}, False
        self._raised.clear()
        return taken


async def run(settings: Settings) -> None:
    """Watch until SIGTERM or SIGINT. ConflictError when another writer has the lock."""
    memory.share()
    held = await _acquire(settings)
    fatal: CtrportError | None = None
    place = Place(settings.state, held)
    try:
        nft = LibNft()
        async with Client(settings.address, timeout=settings.config.timeout_seconds) as client, Relay() as relay:
            held_ports = Reservation() if settings.config.reserve_ports else None
            relayed_ports = relay if settings.config.relay_ipv6_loopback else None
            reconciler = Reconciler(settings, client, nft, held_ports, relayed_ports)
            await _watch(settings, client, Service(client, reconciler), place)
    except* CtrportError as failures:
        fatal = _first(failures)
    finally:
        place.leave()
    if fatal is not None:  # raised here: Python 3.11.2 wraps what an except* block raises
        raise fatal


async def _acquire(settings: Settings) -> int:
    """Take the lock. ConflictError at once when a watcher answers, else when nobody has let go of it in time.

    A command at work gives it back soon, and so does a program that a killed watcher was about to start: between
    fork and exec that has every descriptor of the dead.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + LOCK_PATIENCE
    while (held := lock.try_acquire(settings.state, lock.WRITER)) is None:
        async with control.connect(settings) as other:
            if clock() > deadline or (other is not None and await _answers(other)):
                raise ConflictError(
                    f"another ctrport watches already: it holds {settings.state / lock.WRITER}",
                    hint="one watcher a host; systemctl status ctrport",
                )
        await asyncio.sleep(lock.POLL)
    return held


async def _answers(other: control.Writer) -> bool:
    """Say whether whoever has the socket is alive: a watcher that was killed has it until its last moment."""
    try:
        async with asyncio.timeout(LOCK_PATIENCE):
            await other.call("configuration")
    except HostError:  # it has gone meanwhile
        return False
    except (CtrportError, TimeoutError):  # it watches another containerd, or hangs
        return True
    return True


async def _watch(settings: Settings, client: Client, service: Service, place: Place) -> None:
    doubt, stop = Doubt(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, doubt.raise_anew)
    server = control.Server(settings, service)
    await server.start()
    try:
        async with asyncio.TaskGroup() as group:
            events, created = Watch(client), Created(client)
            healer = Healer(service, server.ready, partial(place.keep, server))
            tasks = [
                group.create_task(healer.run()),  # before the first pass: nothing is missed
                group.create_task(events.run()),
                group.create_task(created.run()),
                group.create_task(_listen(events, created, doubt)),
                group.create_task(_ask_again(client, service, doubt)),
                group.create_task(_remind(service, doubt)),
                group.create_task(_listen_to_firewalld(doubt)),
                group.create_task(_reconcile(settings, service, server, doubt)),
            ]
            await stop.wait()
            notify("STOPPING=1")
            log.info("stopping; the rules stay: ctrport flush removes them")
            async with service.pause(STOP_PATIENCE):  # let a pass that writes come to its end
                for task in tasks:
                    task.cancel()
    finally:
        await server.stop()


def _first(failures: BaseExceptionGroup[CtrportError]) -> CtrportError:
    """Give one of the errors of a group, however deep it lies."""
    found: BaseException = failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, CtrportError)  # noqa: S101 - what except* has matched
    return found


async def _ask_again(client: Client, service: Service, doubt: Doubt) -> None:
    """Ask about tasks that gave no clear answer, beside the passes: a shim that hangs holds up nobody else."""

    async def ask(key: Key) -> None:
        with contextlib.suppress(CtrportError):
            task = await client.task(key)
            if task is None or task.status is not Status.UNKNOWN:
                doubt.raise_about(key)

    while True:
        await asyncio.sleep(SECOND_LOOK)
        async with asyncio.TaskGroup() as group:
            for key in service.uncertain():
                group.create_task(ask(key))


async def _listen(events: Watch, created: Created, doubt: Doubt) -> None:
    async for item in events:
        if isinstance(item, Marker):
            created.forget()
        if item is Marker.LOST:
            log.warning("no events from containerd, mappings stay as they are: %s", events.error)
        elif isinstance(item, Marker):
            doubt.raise_all()
        else:
            record = created.take(item)
            if item.topic != decode.CONTAINER_CREATE:  # which gives it no address yet
                doubt.raise_about(item.key, _start(item, record))


def _start(event: Event, record: Container | None) -> Start | None:
    at = proc.uptime_at(event.timestamp)
    return Start(event.pid, at, record) if event.pid and at is not None else None


async def _listen_to_firewalld(doubt: Doubt) -> None:
    async for _ in firewalld.reloads():
        log.info("firewalld has loaded its rules anew")
        doubt.raise_all()


async def _remind(service: Service, doubt: Doubt) -> None:
    """Have full passes made: the next one a rest after the last has ended, whatever that one was for."""

    def rest() -> float:
        return service.rhythm.rest(service.settings.config.resync_seconds)

    wait = rest()
    while True:
        try:
            async with asyncio.timeout(wait):
                await service.reconfigured.wait()
            service.reconfigured.clear()
            wait = rest()
        except TimeoutError:
            wait = rest() - service.rhythm.since()
            if wait <= 0:
                doubt.raise_all()
                wait = rest()


async def _reconcile(settings: Settings, service: Service, server: control.Server, doubt: Doubt) -> None:
    """Make passes as doubt comes, one after the other; a failed one is made again as a full one."""
    pause = RETRY[0]
    while True:
        doubtful, everything = await doubt.take()
        try:
            if doubt.configuration:
                doubt.configuration = False
                await reload(service)
            if everything or not server.ready.is_set():
                await service.resync()
            else:
                await service.follow(doubtful)
        except Exception as error:  # one of the two top levels: a daemon that keeps ports up goes on
            if isinstance(error, HostError) and not server.ready.is_set():
                raise  # this host lacks what no further try will bring: say so now, not by a start that hangs
            server.trouble = str(error)
            log.error(  # noqa: TRY400 - told in our words where they are ours
                "a pass failed, next try in %.1f s: %s", pause, error, exc_info=not isinstance(error, CtrportError)
            )
            doubt.raise_all()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY[1])
            continue
        pause = RETRY[0]
        if not server.ready.is_set():
            server.ready.set()
            log.info("watching containerd at %s, pid %d", settings.address, os.getpid())
            notify("READY=1\nSTATUS=watching")
