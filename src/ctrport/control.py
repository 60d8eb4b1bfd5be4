"""The watcher's control socket: how a command hands its work to the writer that runs.

One JSON object a line each way over a Unix socket in the state directory, which is root's alone.
A reservation lives as long as the connection that asked for it: a `run` that dies leaves none.

What a writer consists of is imported by who becomes one: it costs 90 ms, and most commands find a watcher.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ctrport import errors
from ctrport.errors import ConflictError, CtrportError, HostError
from ctrport.host import lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ctrport.config import Settings
    from ctrport.connection import Connection
    from ctrport.containerd.client import Client
    from ctrport.service import Service
    from ctrport.session import Session

log = logging.getLogger(__name__)
SOCKET = "watch.sock"
LINE_LIMIT = 64 << 20  # bytes: all mappings of a host, some hundred bytes each
# Seconds for the writer to answer, or to let go of the lock: more than a start may take (`Client.start_task`).
PATIENCE = 90.0
UNTOUCHED = (
    "configuration",
    "prospect",
    "check",
    "containers",
)  # operations that speak of nothing that a pass changes
READY_PATIENCE = 5.0  # seconds that a watcher may still take for its first pass


class Writer(Protocol):
    """Who does a command's work: the watcher, or the command itself with the lock in its hand."""

    watched: bool

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Have an operation of `Service` done. Raises what it raises."""


class _Remote:
    watched = True

    def __init__(self, address: str, reader: asyncio.StreamReader, sender: asyncio.StreamWriter) -> None:
        self._address = address
        self._reader, self._sender = reader, sender
        self._last: asyncio.Future[dict[str, Any]] | None = None
        self._lost: HostError | None = None

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        if self._last is not None:  # who was interrupted has not waited for its answer, which comes first
            await asyncio.wait([self._last])
        self._last = asyncio.ensure_future(self._exchange(operation, arguments))
        self._last.add_done_callback(lambda call: call.cancelled() or call.exception())
        return await asyncio.shield(self._last)

    async def _exchange(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._lost is not None:  # the next line to come would answer what was asked before
            raise self._lost
        try:
            request = {"operation": operation, "containerd": self._address, **arguments}
            self._sender.write(json.dumps(request).encode() + b"\n")
            await self._sender.drain()
            async with asyncio.timeout(PATIENCE):
                line = await self._reader.readline()
        except (OSError, TimeoutError) as error:
            message = f"the watcher did not answer: {error or 'timed out'}"
            self._lost = HostError(message, hint=_WATCHER_HINT)
            raise self._lost from error
        if not line.endswith(b"\n"):
            self._lost = HostError("the watcher went away while it worked for us", hint=_WATCHER_HINT)
            raise self._lost
        reply = json.loads(line)
        if "error" in reply:
            kind = getattr(errors, reply["error"]["kind"], CtrportError)
            raise kind(reply["error"]["message"], hint=reply["error"]["hint"])
        return dict(reply["result"])


_WATCHER_HINT = "systemctl status ctrport; journalctl -u ctrport"


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Writer | None]:
    """Give the watcher, None where none runs."""
    path = settings.state / SOCKET
    lock.check(settings.state)
    try:
        reader, sender = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        yield None
        return
    except PermissionError as error:
        raise HostError(f"cannot reach the watcher at {path}: permission denied", hint="run as root") from error
    try:
        yield _Remote(settings.address, reader, sender)
    finally:
        sender.close()


@asynccontextmanager
async def writer(settings: Settings, connection: Connection) -> AsyncIterator[Writer]:
    """Give the watcher where one runs, else take the lock and be the writer for the time of the block."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while True:
        async with connect(settings) as link:
            if link is not None:
                yield link
                return
        held = lock.try_acquire(settings.state, lock.WRITER)
        if held is not None:
            break
        if loop.time() > deadline:
            raise ConflictError(
                f"another process has held {settings.state / lock.WRITER} for {PATIENCE:.0f} s",
                hint=f"fuser -v {settings.state / lock.WRITER}",
            )
        await asyncio.sleep(lock.POLL)
    local = None
    try:
        local = _session(settings.without_watcher(), connection.client)
        yield local
    finally:
        if local is not None:
            await local.close()
        lock.release(held)


def _session(settings: Settings, client: Client) -> Session:
    from ctrport.firewall.nft import LibNft  # noqa: PLC0415 - see the module's docstring
    from ctrport.reconcile import Reconciler  # noqa: PLC0415
    from ctrport.service import Service  # noqa: PLC0415
    from ctrport.session import Session  # noqa: PLC0415

    return Session(Service(client, Reconciler(settings, client, LibNft())))


class Server:
    """The watcher's end of the control socket: it answers from the start, and works once the watcher is ready."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self.ready = asyncio.Event()  # set once the first pass is through
        self.trouble = "its first pass is not through yet"
        self._settings = settings
        self._path = settings.state / SOCKET
        self._service = service
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. The caller holds the lock, so a socket that is there is left from before."""
        if self._server is not None:
            self._server.close()  # its socket was removed; who is connected stays so
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=LINE_LIMIT)
        self._path.chmod(0o600)

    @property
    def is_reachable(self) -> bool:
        """Whether the socket is there for who wants to speak with the watcher."""
        return self._path.is_socket()

    async def stop(self) -> None:
        """Hang up on everybody. What they reserved is found by the next writer's first pass."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, sender: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as a task
        self._clients.add(task)
        try:
            await self._converse(reader, sender)
        finally:
            self._clients.discard(task)
            sender.close()

    async def _converse(self, reader: asyncio.StreamReader, sender: asyncio.StreamWriter) -> None:
        """Serve one connection until its end; what it reserved and did not use goes with it."""
        from ctrport.session import Session  # noqa: PLC0415 - in the watcher it is there already

        session = Session(self._service)
        try:
            while line := await reader.readline():
                reply = await self._answer(session, line)
                sender.write(json.dumps(reply).encode() + b"\n")
                await sender.drain()
        except (OSError, ValueError) as error:
            log.warning("a client of the control socket went wrong: %s", error)
        await session.close()  # not when this daemon stops: the next one finds what is left

    async def _answer(self, session: Session, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            operation, address = request.pop("operation"), request.pop("containerd")
            self._check_address(address)
            if operation not in UNTOUCHED:
                await self._wait_until_ready()
            return {"result": await session.call(operation, **request)}
        except CtrportError as error:
            return {"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}
        except (KeyError, TypeError, ValueError) as error:
            return {"error": {"kind": "CtrportError", "message": f"not a request: {error!r}", "hint": None}}
        except Exception as error:  # the other top level: the watcher and this client's reservations go on
            log.exception("an operation failed")
            return {
                "error": {"kind": "HostError", "message": f"the watcher failed: {error}", "hint": _WATCHER_HINT}
            }

    def _check_address(self, address: str) -> None:
        if address != self._settings.address:
            raise ConflictError(
                f"the watcher of {self._settings.state} watches {self._settings.address}, not {address}",
                hint=f"export CONTAINERD_ADDRESS={shlex.quote(self._settings.address)}",
            )

    async def _wait_until_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_PATIENCE):
                await self.ready.wait()
        except TimeoutError:
            raise HostError(f"the watcher is not ready: {self.trouble}", hint=_WATCHER_HINT) from None
