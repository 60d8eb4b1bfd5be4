"""A command's connection to containerd, made when it is first needed: beside a watcher many commands need none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ctrport.config import Settings
    from ctrport.containerd.client import Client


class Connection:
    """What gives the client; `async with` closes the one that was made."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()

    @property
    def client(self) -> Client:
        if self._client is None:
            from ctrport.containerd.client import Client  # noqa: PLC0415 - loading gRPC takes 40 ms

            self._client = Client(self._settings.address, timeout=self._settings.config.timeout_seconds)
        return self._client
