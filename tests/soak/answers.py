"""Who answers inside containers, and who asks without a pause from outside.

A page on port 80 comes from the container's own web server. UDP, and TCP connections that stay open, are served
by sockets of this process in the container's namespace: busybox has nothing that does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

from lab import Connection, Netns, connect

if TYPE_CHECKING:
    from collections.abc import Iterable

UDP_PORT, ECHO_PORT = 53, 7


class Answerer:
    """UDP and TCP servers in many namespaces, on one thread; each answers with its container's name."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[str, list[socket.socket]] = {}
        self._wake, self._woken = socket.socketpair()
        self._lock = threading.Lock()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def serve(self, name: str, inside: Netns) -> None:
        """Open a container's sockets; one that has them already keeps them."""
        with self._lock:
            if name in self._sockets:
                return
        opened = inside.call(_open)
        with self._lock:
            self._sockets[name] = opened
            for each in opened:
                self._selector.register(each, selectors.EVENT_READ, name)
        self._wake.send(b"x")

    def end(self, name: str) -> None:
        """Close a container's sockets, which would keep its namespace alive."""
        with self._lock:
            for each in self._sockets.pop(name, ()):
                self._selector.unregister(each)
                each.close()

    def close(self) -> None:
        self._stopped = True
        self._wake.send(b"x")
        self._thread.join(5)
        for name in list(self._sockets):
            self.end(name)
        self._wake.close()
        self._woken.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select(1):
                with contextlib.suppress(OSError), self._lock:
                    self._answer(key.fileobj, key.data)  # type: ignore[arg-type]

    def _answer(self, ready: socket.socket, name: str | None) -> None:
        if name is None:
            ready.recv(64)
        elif ready.fileno() < 0:  # closed meanwhile
            return
        elif ready.type == socket.SOCK_DGRAM:
            _, client = ready.recvfrom(2048)
            ready.sendto(name.encode(), client)
        elif ready.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            accepted, _ = ready.accept()
            accepted.settimeout(0)
            self._sockets[name].append(accepted)
            self._selector.register(accepted, selectors.EVENT_READ, name)
        elif data := ready.recv(2048):
            ready.sendall(data)
        else:
            self._selector.unregister(ready)
            self._sockets[name].remove(ready)
            ready.close()


def _open() -> list[socket.socket]:
    opened = []
    for kind, port in ((socket.SOCK_DGRAM, UDP_PORT), (socket.SOCK_STREAM, ECHO_PORT)):
        each = socket.socket(socket.AF_INET6, kind)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        each.settimeout(0)
        each.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            each.listen()
        opened.append(each)
    return opened


class Talker:
    """A UDP client that never falls silent: from one port, to one port, for as long as the soak lasts."""

    PAUSE = 0.02

    def __init__(self, ns: Netns, address: str, port: int) -> None:
        self._socket = connect(ns, address, port, "udp").socket
        self._socket.settimeout(0)
        self.heard: tuple[float, str] = (0.0, "")
        self.refused = 0.0  # when the last refusal came
        self.sent = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="talker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self.PAUSE):
            try:
                self._socket.send(b"?")
                self.sent += 1
            except ConnectionRefusedError:
                self.refused = time.monotonic()
            except OSError:
                continue
            self._listen()

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self.heard = (time.monotonic(), self._socket.recv(2048).decode())
                except ConnectionRefusedError:
                    self.refused = time.monotonic()
                except BlockingIOError:
                    raise
                except OSError:
                    return

    def hears(self, wanted: Iterable[str], *, within: float = 5.0) -> str:
        """Wait until the last that was heard is from the one wanted (none: a refusal); gives what is wrong."""
        names = set(wanted)
        began = time.monotonic()
        while time.monotonic() - began < within:
            when, name = self.heard
            if names and when > began and name in names:
                return ""
            if not names and self.refused > max(began, when):
                return ""
            time.sleep(self.PAUSE)
        return f"the UDP client hears {self.heard[1] or 'nobody'!r} and not {sorted(names) or 'a refusal'}"

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(5)
        self._socket.close()


class Line:
    """One TCP connection that was opened at the start and is never opened again."""

    def __init__(self, ns: Netns, address: str, port: int) -> None:
        self._connection: Connection = connect(ns, address, port, timeout=20)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def echoes(self) -> str:
        """Send a line and wait for it; gives what is wrong."""
        self._number += 1
        text = f"line {self._number}\n".encode()
        try:
            self._connection.socket.sendall(text)
            got = b""
            while len(got) < len(text):
                if not (more := self._connection.socket.recv(100)):
                    return "the open connection was closed"
                got += more
        except OSError as error:
            return f"the open connection broke: {error}"
        return "" if got == text else f"the open connection gave {got!r} for {text!r}"

    def close(self) -> None:
        self._connection.close()
