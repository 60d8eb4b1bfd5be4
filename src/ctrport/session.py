"""One client of a service: its operations by name, and what it has reserved and not released yet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ctrport.errors import CtrportError
from ctrport.model.workload import Key
from ctrport.whole import to_its_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ctrport.service import Json, Service

log = logging.getLogger(__name__)


class Session:
    """One client of a service: its operations, and what it has reserved and not released yet."""

    watched = False  # for a command that is its own writer

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reserved: dict[Key, str] = {}  # with the paths of their namespaces

    async def call(self, operation: str, **arguments: Any) -> Json:
        """Do an operation. What has begun comes to its end even if the caller is cancelled.

        KeyError for an operation that there is not, TypeError for arguments that it does not take.
        """
        return await to_its_end(self._perform(operation, arguments))

    async def close(self) -> None:
        """Release what is still reserved."""
        for key in sorted(self._reserved):
            try:
                await self._service.release(list(key), owned=True)
            except (CtrportError, OSError) as error:
                log.warning("could not release what was reserved for %s: %s", key, error)

    async def _perform(self, operation: str, arguments: Json) -> Json:
        service = self._service
        if operation == "reserve":
            result = await service.reserve(**arguments)
            self._reserved[Key(*arguments["container"])] = result["netns"]
            return result
        if operation == "connect":
            return await service.connect(**arguments, netns=self._reserved[Key(*arguments["container"])])
        if operation == "release":
            key = Key(*arguments["container"])
            result = await service.release(**arguments, owned=key in self._reserved)
            self._reserved.pop(key, None)
            return result
        plain: dict[str, Callable[..., Awaitable[Json]]] = {
            "converge": service.converge,
            "bindings": service.bindings,
            "configuration": service.configuration,
            "resync": service.resync,
            "prospect": service.inquiry.prospect,
            "spec": service.inquiry.spec,
            "set_spec": service.inquiry.set_spec,
            "start": service.inquiry.start,
            "runs": service.inquiry.runs,
            "check": service.inquiry.check,
            "containers": service.inquiry.containers,
            "publish": service.publish,
            "unpublish": service.unpublish,
            "create_network": service.create_network,
            "remove_network": service.remove_network,
        }
        return await plain[operation](**arguments)
