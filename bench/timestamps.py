"""containerd's own time stamps of /tasks/start, by a subscription beside the watcher's."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from ctrport.containerd.methods import SUBSCRIBE
from ctrport.containerd.pb import events_pb2 as ev
from ctrport.containerd.rpc import Rpc

if TYPE_CHECKING:
    from concurrent.futures import Future

PATIENCE = 20.0


class Starts:
    """When each container's task was started, in nanoseconds since the epoch."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._times: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._life: Future[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._life = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        time.sleep(0.5)  # a subscription says nothing when it is live
        return self

    def __exit__(self, *_: object) -> None:
        if self._life is not None:
            self._life.cancel()
            with suppress(BaseException):
                self._life.result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def of(self, container: str) -> int:
        """Give one start's time stamp; waits for it."""
        deadline = time.monotonic() + PATIENCE
        while container not in self._times:
            if time.monotonic() > deadline:
                raise AssertionError(f"containerd told of no start of {container}")
            time.sleep(0.001)
        return self._times[container]

    async def _listen(self) -> None:
        rpc = Rpc(self._address)
        request = ev.SubscribeRequest(filters=['topic=="/tasks/start"'])
        try:
            async for envelope in rpc.stream(SUBSCRIBE, request, "listen", endless=True):
                started = ev.TaskStart.FromString(envelope.event.value)
                self._times[started.container_id] = envelope.timestamp.ToNanoseconds()
        finally:
            await rpc.close()
