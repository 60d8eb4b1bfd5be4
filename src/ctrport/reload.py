"""config.toml read again while a watcher runs: taken as a whole, or not at all and said so."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from ctrport import config
from ctrport.errors import InputError

if TYPE_CHECKING:
    from ctrport.service import Service

log = logging.getLogger(__name__)


async def reload(service: Service) -> None:
    """Give a service what the file says now; a file that is wrong, or gone, leaves all as it was.

    A policy that has vanished is not one that allows everything: back to the defaults is an empty file.
    """
    settings = service.settings
    try:
        found = await asyncio.to_thread(config.read, settings.config_file, required=settings.config_found)
    except InputError as error:
        service.config_error = error.message
        log.error("the configuration stays as it was: %s", error.message)  # noqa: TRY400 - in our own words
        return
    service.config_error = None
    taken, service.config_waiting = config.taken_over(settings.config, found or config.Config())
    if found is not None:
        log.info("read the configuration again from %s", settings.config_file)
    if service.config_waiting:
        log.warning("a change of %s waits for a restart of the watcher", " and ".join(service.config_waiting))
    await service.configure(replace(settings, config=taken, config_found=found is not None))
