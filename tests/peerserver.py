"""A server that answers with whom it saw: one JSON line for each line (TCP) or datagram (UDP).

It knows the standard library only, so that it runs under `python3 -I` in any network namespace. It prints
`ready` once it can be asked, and ends when its standard input does: it cannot outlive who started it.

    peerserver.py NAME tcp|udp 4|6 ADDRESS PORT [tcp|udp 4|6 ADDRESS PORT …]
"""

import contextlib
import json
import os
import socket
import struct
import sys
import threading

IP_PKTINFO = 8  # linux/in.h; the socket module names it from Python 3.14 on


def describe(name: str, peer: tuple, local: tuple, said: bytes) -> bytes:
    seen = {"name": name, "peer": peer[:2], "local": local[:2], "said": said.decode("latin-1")}
    return json.dumps(seen).encode() + b"\n"


def serve_connection(name: str, connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        peer, local = connection.getpeername(), connection.getsockname()
        for line in connection.makefile("rb"):
            connection.sendall(describe(name, peer, local, line.rstrip(b"\n")))


def serve_tcp(name: str, listener: socket.socket) -> None:
    while True:
        connection, _peer = listener.accept()
        threading.Thread(target=serve_connection, args=(name, connection), daemon=True).start()


def serve_udp(name: str, server: socket.socket) -> None:
    """Answer from the address that was asked: a wildcard socket would otherwise let routing choose."""
    port = server.getsockname()[1]
    v6 = server.family == socket.AF_INET6
    while True:
        # An ICMP error that an earlier answer brought back is reported here; it concerns nobody any more.
        with contextlib.suppress(OSError):
            said, [(level, kind, info), *_], _flags, peer = server.recvmsg(65536, 256)
            if v6:
                local = socket.inet_ntop(socket.AF_INET6, info[:16])
                control = info
            else:
                local = socket.inet_ntoa(info[4:8])
                control = struct.pack("=I4s4s", 0, info[4:8], bytes(4))
            server.sendmsg([describe(name, peer, (local, port), said)], [(level, kind, control)], 0, peer)


def start(name: str, protocol: str, family: str, address: str, port: str) -> None:
    server = socket.socket(
        socket.AF_INET6 if family == "6" else socket.AF_INET,
        socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM,
    )
    if family == "6":
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if protocol == "tcp":
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif family == "6":
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        server.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    server.bind((address, int(port)))
    if protocol == "tcp":
        server.listen(1024)
    serve = serve_tcp if protocol == "tcp" else serve_udp
    threading.Thread(target=serve, args=(name, server), daemon=True).start()


def main() -> None:
    name, *words = sys.argv[1:]
    for first in range(0, len(words), 4):
        start(name, *words[first : first + 4])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.read(0, 4096):
        pass


if __name__ == "__main__":
    main()
