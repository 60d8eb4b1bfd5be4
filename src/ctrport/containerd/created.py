"""Records of containers between their creation and the start of their tasks.

A port waits for the start, and then for the record. But the record is there before: whoever creates a container
has its root filesystem and its runtime's files to make until it starts. So it is read at its creation, and holds
until the next event about the container, whatever that is.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from ctrport.containerd import decode
from ctrport.errors import CtrportError

if TYPE_CHECKING:
    from ctrport.containerd.client import Client
    from ctrport.containerd.decode import Event
    from ctrport.model.workload import Container, Key

LIMIT = 64  # containers: many more at once, and their starts come before their turn


class Created:
    """What was read of containers that have not started yet."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._records: dict[Key, Event | Container] = {}  # the event of a creation until its record is read
        self._unread: asyncio.Queue[Event] = asyncio.Queue()

    def take(self, event: Event) -> Container | None:
        """Take in an event; gives the record that was read since the creation and holds until now."""
        record = self._records.pop(event.key, None)
        if event.topic == decode.CONTAINER_CREATE:
            if len(self._records) >= LIMIT:
                del self._records[next(iter(self._records))]  # the oldest
            self._records[event.key] = event
            self._unread.put_nowait(event)
        return None if isinstance(record, decode.Event) else record

    def forget(self) -> None:
        """Forget all: events may have been lost."""
        self._records.clear()

    async def run(self) -> None:
        """Read what is created, until cancelled. Who is gone, or does not answer, is left to those who need it."""
        while True:
            event = await self._unread.get()
            if self._records.get(event.key) is not event:
                continue
            with suppress(CtrportError):
                record = await self._client.container(event.key)
                if self._records.get(event.key) is event:  # and nothing has happened meanwhile
                    self._records[event.key] = record
