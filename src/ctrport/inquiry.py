"""What commands ask of containerd: plain JSON, so that a watcher can be asked for it.

The watcher is connected to containerd already; a command would first have to load gRPC, which costs 40 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctrport import lifecycle
from ctrport.errors import NotFoundError
from ctrport.model.key import Key

if TYPE_CHECKING:
    from ctrport.containerd.client import Client

Json = dict[str, Any]
NOTICE_PATIENCE = 2.0  # seconds for containerd to take note of an exit


class Inquiry:
    """Questions of `run`, `port` and `ps`, and what ctr has no option for, or does worse."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def prospect(self, container: list[str], images: list[str]) -> Json:
        """Say what a new container depends on: version, the first image that is here, whether its name is taken."""
        version = await self._client.version()  # and so fail before anything else when containerd is not there
        key = Key(*container)
        image, config = None, None
        for image in images:
            config = await self._client.image_config(key.namespace, image)
            if config is not None:
                break
        try:
            await self._client.container(key)
            taken = True
        except NotFoundError:
            taken = False
        return {"version": version, "image": None if config is None else image, "config": config, "taken": taken}

    async def spec(self, container: list[str], *, roots: bool) -> Json:
        """Give the OCI spec; with `roots` also the directories of the root filesystem, the topmost first."""
        key = Key(*container)
        spec = await self._client.spec(key)
        return {"spec": spec, "roots": [str(p) for p in await self._client.root_directories(key)] if roots else []}

    async def set_spec(self, container: list[str], spec: Json) -> Json:
        """Replace the OCI spec."""
        await self._client.set_spec(Key(*container), spec)
        return {}

    async def start(self, container: list[str], streams: Json) -> Json:
        """Start a container's task with these streams, see `Client.start_task`; gives its pid."""
        return {"pid": await self._client.start_task(Key(*container), **streams)}

    async def check(self, container: list[str]) -> Json:
        """Raise NotFoundError unless there is a container."""
        await self._client.container(Key(*container))
        return {}

    async def containers(self, namespace: str) -> Json:
        """Give every container of a namespace, oldest first."""
        tasks = await self._client.tasks(namespace)
        records = sorted(await self._client.containers(namespace), key=lambda c: c.created_at)
        return {
            "containers": [
                {
                    "id": record.key.id,
                    "name": record.name,
                    "namespace": namespace,
                    "image": record.image,
                    "status": str(task.status) if task else "none",
                    "live": task is not None and task.status.live,
                    "netns": record.netns,
                }
                for record, task in ((record, tasks.get(record.key.id)) for record in records)
            ]
        }

    async def runs(self, container: list[str]) -> Json:
        """Say whether a container's task runs on.

        A process that is gone, with its network, still counts as running until containerd has taken note.
        """
        return {"runs": not await lifecycle.ends(self._client, Key(*container), within=NOTICE_PATIENCE)}
