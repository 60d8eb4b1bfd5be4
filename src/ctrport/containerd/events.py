"""containerd's events as reasons to look again: nothing is missed for good, nothing piles up.

Theory of operation:

1. Subscribe gives no sign that it is live before its first event. So a subscription also asks for a topic of
   its own (the sentinel, with a random name), and an event is published there again and again until one comes
   back. Then SUBSCRIBED is given: whoever lists everything *now* misses nothing that happens later. Events
   from before are dropped, the listing shows what they were about.
2. When the stream ends or fails, LOST is given once, and the subscription is tried again with growing pauses;
   then SUBSCRIBED is given again. Events in between are lost, as containerd keeps none: list again.
3. containerd keeps what a slow subscriber does not read, without bound. So `run` always reads, and the
   consumer's side holds one entry a container: its latest event, in the place of its first. Beyond `limit`
   containers all entries give way to one RESYNC: list everything.
4. The sentinel is sent again every `heartbeat` seconds; when it does not come back the stream is given up.

Exits of exec'ed processes (health checks) are dropped: they say nothing of the container.
"""

from __future__ import annotations

import asyncio
import enum
import random
import secrets
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from google.protobuf.any_pb2 import Any as AnyMessage

from ctrport.containerd import decode, methods
from ctrport.containerd.decode import Event
from ctrport.containerd.pb import events_pb2 as ev
from ctrport.errors import ContainerdError, CtrportError

if TYPE_CHECKING:
    from ctrport.containerd.client import Client
    from ctrport.model.workload import Key

# Not /tasks/create: there is no address before the start. Not paused and resumed: a paused container keeps its
# ports.
TOPICS: Final = (
    decode.TASK_START,
    decode.TASK_EXIT,
    decode.TASK_DELETE,
    decode.CONTAINER_CREATE,
    decode.CONTAINER_UPDATE,
    decode.CONTAINER_DELETE,
)

# Events.Publish demands a namespace, which need not exist.
_SENTINEL_NAMESPACE: Final = "default"
_SENTINEL_PAUSES: Final = (0.002, 0.1)  # seconds: the first (it usually takes 2 to 4 ms), and the longest
_RETRY_PAUSES: Final = (0.05, 2.0)  # seconds between subscriptions, give or take a quarter


class Marker(enum.Enum):
    """What is to be known of the stream itself."""

    SUBSCRIBED = "subscribed"  # events flow from here on: list everything now
    LOST = "lost"  # no events until SUBSCRIBED; the reason is in Watch.error
    RESYNC = "resync"  # too much happened at once: list everything now


Item: TypeAlias = Event | Marker


class Buffer:
    """What the consumer has not taken yet: at most `limit` containers and the markers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: dict[Key, Event] = {}
        self._markers: list[Marker] = []  # given before the events
        self._filled = asyncio.Event()

    def mark(self, marker: Marker) -> None:
        """Add a marker. What is waiting gives way: either it cannot be read now, or everything is listed."""
        self._events.clear()
        # Of LOST, SUBSCRIBED, LOST, SUBSCRIBED that nobody has taken, the last two tell all.
        lost_before = marker is not Marker.LOST and Marker.LOST in self._markers
        self._markers = [Marker.LOST, marker] if lost_before else [marker]
        self._filled.set()

    def add(self, event: Event) -> None:
        """Add an event, unless the consumer is about to list everything anyway."""
        if self._markers and self._markers[-1] is not Marker.LOST:
            return
        if event.key not in self._events and len(self._events) >= self._limit:
            self.mark(Marker.RESYNC)
            return
        if event.key in self._events:  # more has happened than a start
            event = replace(event, pid=None)
        self._events[event.key] = event
        self._filled.set()

    async def take(self) -> Item:
        """Give the next item; wait for one."""
        await self._filled.wait()
        item: Item = self._markers.pop(0) if self._markers else self._events.pop(next(iter(self._events)))
        if not self._markers and not self._events:
            self._filled.clear()
        return item


class Watch:
    """Events of all namespaces of one containerd, and markers; for one consumer.

        async with asyncio.TaskGroup() as group:
            watch = Watch(client)
            group.create_task(watch.run())
            async for item in watch: ...

    `limit` counts containers, `heartbeat` seconds. `error` is what ended the last subscription.
    """

    def __init__(self, client: Client, *, limit: int = 4096, heartbeat: float = 60.0) -> None:
        self.error: CtrportError | None = None
        self._rpc = client.rpc
        self._heartbeat = heartbeat
        self._buffer = Buffer(limit)
        self._live = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        return await self._buffer.take()

    async def run(self) -> None:
        """Keep a subscription until cancelled; failures become LOST and another attempt, never an error."""
        clock = asyncio.get_running_loop().time
        shortest, longest = _RETRY_PAUSES
        pause = shortest
        told = False
        while True:
            began = clock()
            self._live = False
            try:
                await self._subscription()
            except* CtrportError as errors:
                self.error = _first(errors)
            if self._live or not told:
                self._buffer.mark(Marker.LOST)
                told = True
            if self._live and clock() - began > longest:
                pause = shortest
            # Jitter, so that several watchers do not come back in step.
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311  # not a secret
            pause = min(2 * pause, longest)

    async def _subscription(self) -> None:
        """Subscribe once and read until the stream ends. Raises a group of CtrportError, always."""
        topic = f"/ctrport/sentinel/{secrets.token_hex(8)}"
        returned = asyncio.Event()
        request = ev.SubscribeRequest(filters=[f'topic=="{name}"' for name in (*TOPICS, topic)])
        async with (
            asyncio.TaskGroup() as group,
            aclosing(
                # Without an end: the sentinel's deadline speaks for it.
                self._rpc.stream(methods.SUBSCRIBE, request, "subscribe to events", endless=True)
            ) as envelopes,
        ):
            group.create_task(self._send_sentinels(topic, returned))
            async for envelope in envelopes:
                if envelope.topic == topic:
                    returned.set()
                    if not self._live:
                        self._live = True
                        self._buffer.mark(Marker.SUBSCRIBED)
                elif self._live:
                    event = decode.event(envelope)
                    if event is not None and (event.topic != decode.TASK_EXIT or event.exec_id is None):
                        self._buffer.add(event)
            raise ContainerdError(f"containerd at {self._rpc.path} ended the event stream")

    async def _send_sentinels(self, topic: str, returned: asyncio.Event) -> None:
        """Publish to `topic` until it comes back, now and at every heartbeat. Raises CtrportError if not."""
        request = ev.PublishRequest(topic=topic, event=AnyMessage(type_url="ctrport.io/sentinel"))
        first, longest = _SENTINEL_PAUSES
        while True:
            returned.clear()
            pause = first
            try:
                async with asyncio.timeout(self._rpc.timeout):
                    while not returned.is_set():
                        await self._rpc.unary(
                            methods.PUBLISH, request, "publish an event", namespace=_SENTINEL_NAMESPACE
                        )
                        await _wait(returned, pause)
                        pause = min(2 * pause, longest)
            except TimeoutError as error:
                message = f"containerd at {self._rpc.path} gave no event back within {self._rpc.timeout:g} s"
                raise ContainerdError(message) from error
            await asyncio.sleep(self._heartbeat)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _first(errors: BaseExceptionGroup[CtrportError]) -> CtrportError:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, CtrportError)  # noqa: S101  # what except* has matched
    return found
