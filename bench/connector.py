"""Both ends of connections through a host, in one thread: so little but the kernel's path is measured.

    connector.py NAMESPACE ADDRESS PORT

It serves port 80 inside NAMESPACE and connects from the namespace that it was started in. A connection is ended
by a reset: no end of it stays in TIME_WAIT, where it would keep an address from the next one.
"""

import ctypes
import json
import os
import socket
import struct
import sys
import threading
import time

CLONE_NEWNET = 0x40000000
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time
BURST, PACKET = 32, 64  # datagrams
SECONDS = 0.5  # of a flow


def enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def connects(server: socket.socket, to: tuple[str, int], number: int) -> list[float]:
    """Give the microseconds of each connect()."""
    found = []
    for _ in range(number):
        client = socket.socket()
        client.settimeout(None)
        begun = time.perf_counter_ns()
        client.connect(to)
        found.append((time.perf_counter_ns() - begun) / 1000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        server.accept()[0].close()
    return found


def rate(server: socket.socket, to: tuple[str, int]) -> float:
    """Give thousands of small packets a second that one connection carried, sent and taken in turns."""
    client = socket.create_connection(to)
    other = server.accept()[0]
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data, packets, begun = bytes(PACKET), 0, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        for _ in range(BURST):
            client.sendall(data)
        left = BURST * PACKET
        while left:
            left -= len(other.recv(left))
        packets += BURST
    ended = time.perf_counter()
    _reset(client, other)
    return packets / (ended - begun) / 1000


def throughput(server: socket.socket, to: tuple[str, int]) -> float:
    """Give gigabits a second of one connection."""
    client = socket.create_connection(to)
    other = server.accept()[0]
    taken = 0

    def take() -> None:
        nonlocal taken
        buffer = bytearray(1 << 20)
        while count := other.recv_into(buffer):
            taken += count

    thread = threading.Thread(target=take)
    thread.start()
    data, begun = bytes(1 << 18), time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    thread.join()
    ended = time.perf_counter()
    _reset(client, other)
    return taken * 8 / (ended - begun) / 1e9


def _reset(*ends: socket.socket) -> None:
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.close()


def main() -> None:
    namespace, address, port = sys.argv[1:]
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter(os.open(namespace, os.O_RDONLY))
    server = socket.socket()
    server.bind(("", 80))
    server.listen(64)
    enter(own)
    to = (address, int(port))
    connects(server, to, 50)
    print("[]", flush=True)
    for line in sys.stdin:
        kind, number = line.split()
        if kind == "connect":
            found = connects(server, to, int(number))
        else:
            found = [rate(server, to) if kind == "rate" else throughput(server, to)]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
