"""Calls to containerd: the connection, deadlines, and what a failed call means in words.

Knows gRPC and nothing of containers. The rest of the package sees messages in, messages out, and three
errors: `ContainerdError`, `NotFoundError` for the status NOT_FOUND, and `HostError` when this user may not
open the socket.
"""

from __future__ import annotations

import os

# Without this, gRPC installs fork handlers that log at, or hang in, every real fork of the process.
# It is read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import errno
import math
import socket
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from ctrport.errors import ContainerdError, HostError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ctrport.containerd.methods import Method, Q, R

# Only Subscribe, Version and Namespaces do without a namespace; the others answer FAILED_PRECONDITION.
NAMESPACE_HEADER: Final = "containerd-namespace"

_OPTIONS: Final = (
    # gRPC's defaults wait 20 s before the second attempt and up to 120 s later; a local socket needs neither.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),  # also the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 64 << 20),
    # gRPC would send the escaped path of the socket, which Go's HTTP/2 server refuses in some versions.
    ("grpc.default_authority", "localhost"),
    # No keepalive pings: containerd ends connections that send them (GOAWAY too_many_pings).
)

_START_HINT: Final = "is containerd running? Pass -a/--address or set CONTAINERD_ADDRESS"
_HINTS: Final = {
    "UNAVAILABLE": _START_HINT,
    "UNIMPLEMENTED": "is this containerd's socket? Pass -a/--address or set CONTAINERD_ADDRESS",
    "PERMISSION_DENIED": "run as root",
}


class Rpc:
    """One gRPC channel to one containerd; opened by the first call, closed by `close`.

    `address` is a path or a `unix://` address; `timeout` the deadline of a whole call in seconds.
    """

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        self.address = address
        self.path = address.removeprefix("unix://").removeprefix("unix:")
        self.timeout = timeout
        self._channel: Any = None

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def unary(
        self,
        method: Method[Q, R],
        request: Q,
        what: str,
        *,
        namespace: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - gRPC's deadline, which containerd learns of
    ) -> R:
        """Call `method`; `what` completes the sentence "cannot ...".

        `timeout` replaces the connection's; infinity is none. Raises NotFoundError, HostError or ContainerdError.
        """
        limit = self.timeout if timeout is None else timeout
        channel, wait = self._connected(what)
        call = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            response: R = await call(
                request,
                timeout=None if limit == math.inf else limit,
                metadata=_metadata(namespace),
                wait_for_ready=wait,
            )
        except grpc.aio.AioRpcError as error:
            raise self._failure(error, what, limit) from error
        return response

    async def stream(
        self,
        method: Method[Q, R],
        request: Q,
        what: str,
        *,
        namespace: str | None = None,
        endless: bool = False,
    ) -> AsyncGenerator[R, None]:
        """Call `method` and give each response; no deadline when `endless`. Errors as in `unary`.

        Close the generator (`contextlib.aclosing`) when leaving it early: that cancels the call.
        """
        channel, wait = self._connected(what)
        stub = channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        timeout = None if endless else self.timeout
        call = stub(request, timeout=timeout, metadata=_metadata(namespace), wait_for_ready=wait)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._failure(error, what, self.timeout) from error
        finally:
            call.cancel()

    def _connected(self, what: str) -> tuple[Any, bool]:
        """Give the channel, and whether a call is to wait until the channel is ready.

        Unless it is connected already, the socket is tried first: that makes a missing containerd fail at
        once and with the kernel's reason. When the socket takes connections, the call waits out what is left
        of the channel's backoff. A call on a connected channel never waits: if containerd goes away just
        then, it fails instead of waiting for the next containerd.
        """
        if self._channel is None:
            self._probe(what)
            self._channel = grpc.aio.insecure_channel(f"unix:{self.path}", options=_OPTIONS)
            return self._channel, True
        if self._channel.get_state() is grpc.ChannelConnectivity.READY:
            return self._channel, False
        self._probe(what)
        return self._channel, True

    def _probe(self, what: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0)
            try:
                probe.connect(self.path)
            except BlockingIOError:
                return  # alive, with a full backlog
            except PermissionError as error:
                message = f"cannot {what}: no permission to open containerd's socket {self.path}"
                raise HostError(message, hint="run as root") from error
            except OSError as error:
                # "AF_UNIX path too long" carries no errno.
                reason = os.strerror(error.errno) if error.errno else str(error)
                if error.errno == errno.ECONNREFUSED:
                    reason += ": nobody listens there"
                message = f"cannot {what}: no containerd at {self.path} ({reason})"
                raise ContainerdError(message, hint=_START_HINT) from error

    def _failure(self, error: grpc.aio.AioRpcError, what: str, limit: float) -> NotFoundError | ContainerdError:
        code: str = error.code().name
        if code == "DEADLINE_EXCEEDED":
            message = f"cannot {what}: containerd at {self.path} gave no answer within {limit:g} s"
            return ContainerdError(message, hint="does `ctr version` answer? See containerd's log")
        details = error.details() or "no details"
        message = f"cannot {what}: containerd at {self.path} answered {code}: {details}"
        if code == "NOT_FOUND":
            return NotFoundError(message)
        return ContainerdError(message, hint=_HINTS.get(code))


def _metadata(namespace: str | None) -> tuple[tuple[str, str], ...] | None:
    return ((NAMESPACE_HEADER, namespace),) if namespace else None
