"""Network namespaces with real packets: a host under test, a remote machine, and who answers whom.

Used by the kernel tests, the end-to-end tests and scripts/demo. Nothing here knows ctrport, and nothing
touches the network namespace that it runs in: links are made inside the namespaces, sockets are opened inside
them by a thread that enters them for a moment. Addresses are those reserved for documentation.

    with Lab() as lab:
        with serve(lab.remote, 80):
            assert ask(lab.host, "192.0.2.2", 80).peer == ("192.0.2.1", ...)
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import enum
import errno
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Protocol = Literal["tcp", "udp"]

PREFIX = "ctrport-test-"
DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000
PEERSERVER = Path(__file__).with_name("peerserver.py")
UNSPECIFIED = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - inside the lab

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


# --------------------------------------------------------------------------------------------- namespaces


class Netns:
    """One network namespace, and the processes started in it."""

    def __init__(self, label: str) -> None:
        """Make a namespace with a unique name; `label` is what people and servers call it."""
        self.label = label
        self.name = f"{PREFIX}{os.getpid()}-{next(_numbers)}-{label}"
        self.path = DIRECTORY / self.name
        self._owned = True
        self._processes: list[subprocess.Popen[Any]] = []
        subprocess.run(["ip", "netns", "add", self.name], check=True, timeout=10)
        # Duplicate address detection would keep IPv6 addresses unusable for a second.
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.ip("link set lo up")

    @classmethod
    def at(cls, path: str | Path, label: str) -> Netns:
        """Give a namespace that somebody else made, by its file (`/run/netns/NAME`, `/proc/PID/ns/net`)."""
        self = cls.__new__(cls)
        self.label, self.path = label, Path(path)
        self.name = self.path.name
        self._owned = False
        self._processes = []
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Netns {self.label} {self.path}>"

    def argv(self, *argv: str | Path) -> list[str]:
        """Give the command line that runs `argv` inside; `ip netns exec` would hide /sys/fs/cgroup."""
        return ["nsenter", f"--net={self.path}", "--", *map(str, argv)]

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - subprocess's own name
        timeout: float = 30,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside; a failure carries the command's own words."""
        result = subprocess.run(
            self.argv(*argv),
            check=False,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )
        if check and result.returncode:
            command = " ".join(map(str, argv))
            said = result.stderr + result.stdout
            raise AssertionError(f"in {self.label}: {command}: exit code {result.returncode}\n{said}")
        return result

    def popen(self, *argv: str | Path, **options: Any) -> subprocess.Popen[Any]:
        """Start a process inside, in a session of its own; `close` ends it."""
        process = subprocess.Popen(self.argv(*argv), start_new_session=True, **options)
        self._processes.append(process)
        return process

    def call(self, function: Callable[[], T]) -> T:
        """Give `function()` as run by a thread inside: for sockets, /proc/net and /proc/sys/net."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                _enter(self.path)
                outcome.append(function())
            except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
                failure.append(error)

        thread = threading.Thread(target=enter, name=f"in {self.label}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def ip(self, *commands: str) -> None:
        """Run several `ip` commands inside in one process, each written as after the word `ip`."""
        self.run("ip", "-batch", "-", input="\n".join(commands) + "\n")

    def nft(self, script: str) -> str:
        """Run an nft script inside and give what it prints."""
        return self.run("nft", "-f", "-", input=script).stdout

    def sysctl(self, name: str, value: object = None) -> str:
        """Set (when there is a value) and give a setting; a name with an interface in it has slashes."""
        path = Path("/proc/sys") / (name if "/" in name else name.replace(".", "/"))
        if value is not None:
            self.call(lambda: path.write_text(f"{value}\n"))
        return self.call(path.read_text).strip()

    def add_veth(
        self,
        peer: Netns,
        name: str,
        peer_name: str,
        *,
        addresses: tuple[str, ...] = (),
        peer_addresses: tuple[str, ...] = (),
    ) -> None:
        """Lay a cable to `peer`; both ends are up and have their addresses ("192.0.2.1/24")."""
        for one, its_name in ((self, name), (peer, peer_name)):
            with contextlib.suppress(OSError):  # left over from an interface of that name
                one.sysctl(f"net/ipv6/conf/{its_name}/accept_dad", 0)
        subprocess.run(
            [
                *("ip", "link", "add", "name", name, "netns", self._at()),
                *("type", "veth", "peer", "name", peer_name, "netns", peer._at()),
            ],
            check=True,
            timeout=10,
        )
        self.ip(f"link set {name} up", *(add_address(name, each) for each in addresses))
        peer.ip(f"link set {peer_name} up", *(add_address(peer_name, each) for each in peer_addresses))

    def _at(self) -> str:
        """Name the namespace for `ip`, which takes a name in /run/netns or a process id."""
        inside = re.fullmatch(r"/proc/(\d+)/ns/net", str(self.path))
        return inside[1] if inside else self.name

    def close(self) -> None:
        """End the processes started through this object and remove the namespace; may be called twice."""
        alive = [process for process in self._processes if process.poll() is None]
        for process in alive:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._processes.clear()
        if self._owned:
            self._owned = False
            subprocess.run(["ip", "netns", "delete", self.name], check=True, timeout=10)


def _enter(path: Path) -> None:
    """Move the calling thread into a network namespace (os.setns comes with Python 3.12)."""
    with path.open("rb") as file:
        if _libc.setns(file.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))


def add_address(device: str, address: str) -> str:
    """Give the `ip` command that adds an address; IPv6 is usable at once."""
    return f"address add {address} dev {device}" + (" nodad" if ":" in address else "")


# ---------------------------------------------------------------------------------------------------- lab


class Lab:
    """The machine under test (`host`), a machine on the same wire (`remote`), and what hangs on the host."""

    HOST_ADDRESSES = ("192.0.2.1/24", "192.0.2.10/24", "2001:db8::1/64")
    REMOTE_ADDRESSES = ("192.0.2.2/24", "2001:db8::2/64")

    host: Netns
    remote: Netns

    def __init__(self, *, forwarding: bool = True) -> None:
        """Say whether the host forwards from the start (as a test of rules alone needs it)."""
        self.forwarding = forwarding
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self.host = self.netns("host")
            self.remote = self.netns("remote")
            self.host.add_veth(
                self.remote,
                "eth0",
                "eth0",
                addresses=self.HOST_ADDRESSES,
                peer_addresses=self.REMOTE_ADDRESSES,
            )
            # Each is the other's router: the remote can so send to container addresses directly, which the
            # host must stop by itself and not for want of a route. Neither sends on what it does not know.
            self.host.ip("route add default via 192.0.2.2", "route add default via 2001:db8::2")
            self.remote.ip("route add default via 192.0.2.1", "route add default via 2001:db8::1")
            self.remote.sysctl("net.ipv4.ip_forward", 0)
            self._settle_host()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def netns(self, label: str) -> Netns:
        """Make one more namespace, which goes with the lab."""
        return self._stack.enter_context(Netns(label))

    def bridge(self, name: str, *addresses: str) -> str:
        """Make a bridge on the host, as a container network has one, and give its name."""
        self.host.ip(
            f"link add name {name} type bridge",
            *(add_address(name, each) for each in addresses),
            f"link set {name} up",
        )
        return name

    def container_like(
        self,
        name: str,
        bridge: str,
        ipv4: str | None = None,
        ipv6: str | None = None,
        *,
        gateway4: str | None = None,
        gateway6: str | None = None,
    ) -> Netns:
        """Make a namespace that hangs on a bridge of the host, with `eth0` and default routes.

        Addresses are written with their length ("10.88.0.2/24"), gateways without.
        """
        container = self.netns(name)
        port = f"v{next(_numbers)}-{name}"[:15]
        addresses = tuple(each for each in (ipv4, ipv6) if each)
        container.add_veth(self.host, "eth0", port, addresses=addresses)
        self.host.ip(f"link set {port} master {bridge}")
        routes = [f"route add default via {gateway4}"] if gateway4 else []
        routes += [f"route add default via {gateway6}"] if gateway6 else []
        if routes:
            container.ip(*routes)
        return container

    def reset_host(self) -> None:
        """Bring the host back to how the lab made it: no rules, flows or other links, its first settings."""
        self.host.nft("flush ruleset")
        links = self.host.run("ip", "-o", "link").stdout
        names = [line.split(":")[1].split("@")[0].strip() for line in links.splitlines()]
        # One end of a veth pair takes the other with it.
        for name in names:
            if name not in {"lo", "eth0"}:
                self.host.run("ip", "link", "delete", name, check=False)
        self.host.run("conntrack", "-F", check=False)
        self._settle_host()

    def _settle_host(self) -> None:
        # A new namespace takes IPv4 settings from the machine: say all that matter.
        self.host.sysctl("net.ipv4.ip_forward", int(self.forwarding))
        self.host.sysctl("net.ipv6.conf.all.forwarding", int(self.forwarding))
        for which in ("all", "default", "eth0"):
            self.host.sysctl(f"net.ipv4.conf.{which}.rp_filter", 0)
            self.host.sysctl(f"net.ipv4.conf.{which}.route_localnet", 0)
        self.host.sysctl("net.ipv4.ip_local_port_range", "32768 60999")
        self.host.sysctl("net.ipv4.ip_local_reserved_ports", "")


# ------------------------------------------------------------------------------------------- asking around


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Who answered, and which addresses the server saw."""

    name: str
    peer: tuple[str, int]
    local: tuple[str, int]


class Failure(enum.Enum):
    """How a request ended without an answer."""

    REFUSED = "refused"  # at once, by a reset or an ICMP port unreachable
    TIMEOUT = "timeout"  # silence
    UNREACHABLE = "unreachable"  # at once: no route, administratively prohibited, or dropped before it left
    RESET = "reset"  # connected, then cut off before the answer


REFUSED = Failure.REFUSED
TIMEOUT = Failure.TIMEOUT
UNREACHABLE = Failure.UNREACHABLE
RESET = Failure.RESET

_FAILURES = {
    errno.ECONNREFUSED: REFUSED,
    errno.ETIMEDOUT: TIMEOUT,
    errno.ENETUNREACH: UNREACHABLE,
    errno.EHOSTUNREACH: UNREACHABLE,
    errno.ENETDOWN: UNREACHABLE,
    errno.EACCES: UNREACHABLE,
    errno.EPERM: UNREACHABLE,
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
}


def failure(error: OSError) -> Failure:
    """Say in one word how a socket call failed; what is no answer of the network is raised."""
    if isinstance(error, TimeoutError):
        return TIMEOUT
    if error.errno in _FAILURES:
        return _FAILURES[error.errno]
    raise error


class Server:
    """A running peerserver."""

    def __init__(self, process: subprocess.Popen[Any], name: str, port: int) -> None:
        self.process = process
        self.pid: int = process.pid
        self.name = name
        self.port = port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; open connections are cut."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
        self.process.wait(5)


def serve(
    ns: Netns,
    port: int,
    proto: Protocol = "tcp",
    family: Literal[4, 6] = 4,
    bind: str | None = None,
    *,
    name: str | None = None,
) -> Server:
    """Start a server in `ns` that tells whom it saw; it is listening when this returns."""
    return _start_server(ns, name or ns.label, [(proto, family, bind or UNSPECIFIED[family], port)])


def serve_everything(ns: Netns, *ports: int, loopback: int | None = None) -> Server:
    """Start one process that serves several ports, tcp and udp, both families; one more on 127.0.0.1 alone."""
    protocols: tuple[Protocol, ...] = ("tcp", "udp")
    wanted = [(proto, f, UNSPECIFIED[f], port) for port in ports for proto in protocols for f in (4, 6)]
    if loopback:
        wanted += [(proto, 4, "127.0.0.1", loopback) for proto in protocols]
    return _start_server(ns, ns.label, wanted)


def _start_server(ns: Netns, name: str, wanted: list[tuple[Protocol, int, str, int]]) -> Server:
    process = ns.popen(
        *(sys.executable, "-I", PEERSERVER, name, *(str(word) for one in wanted for word in one)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    output: IO[bytes] = process.stdout  # type: ignore[assignment]
    ready, _, _ = select.select([output], [], [], 10)
    if not ready or output.readline() != b"ready\n":
        process.kill()
        raise AssertionError(f"no server for {wanted} in {ns.label}; its own words are on stderr")
    return Server(process, name, wanted[0][3])


class Connection:
    """An open TCP connection, or a connected UDP socket, to a peerserver."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def local(self) -> tuple[str, int]:
        address: tuple[Any, ...] = self.socket.getsockname()
        return address[0], address[1]

    def echo(self, data: bytes) -> bytes:
        """Send one line (without its end) and give what the server says it received; raises OSError."""
        said: str = self._exchange(data)["said"]
        return said.encode("latin-1")

    def ask(self) -> Answer:
        """Ask whom the server sees at the other end; raises OSError."""
        seen = self._exchange(b"?")
        return Answer(seen["name"], tuple(seen["peer"]), tuple(seen["local"]))

    def _exchange(self, line: bytes) -> dict[str, Any]:
        reply: dict[str, Any]
        if self.socket.type == socket.SOCK_DGRAM:
            self.socket.sendall(line)
            reply = json.loads(self.socket.recv(65536))
            return reply
        self.socket.sendall(line + b"\n")
        while b"\n" not in self._unread:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, "closed by the server")
            self._unread += more
        text, _, self._unread = self._unread.partition(b"\n")
        reply = json.loads(text)
        return reply

    def close(self) -> None:
        self.socket.close()


def connect(
    ns: Netns,
    address: str,
    port: int,
    proto: Protocol = "tcp",
    *,
    source_port: int | None = None,
    bind: str | None = None,
    timeout: float = 1.0,
) -> Connection:
    """Open a connection from inside `ns`; `timeout` seconds are for each call on it, too; raises OSError."""

    def open_socket() -> socket.socket:
        v6 = ":" in address
        opened = socket.socket(
            socket.AF_INET6 if v6 else socket.AF_INET,
            socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM,
        )
        try:
            opened.settimeout(timeout)
            if source_port or bind:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                opened.bind((bind or "", source_port or 0))
            opened.connect((address, port))
        except OSError:
            opened.close()
            raise
        return opened

    # A socket stays in the namespace in which it was made, whoever uses it.
    return Connection(ns.call(open_socket))


def ask(
    ns: Netns,
    address: str,
    port: int,
    proto: Protocol = "tcp",
    *,
    source_port: int | None = None,
    bind: str | None = None,
    timeout: float = 1.0,
) -> Answer | Failure:
    """Send one request from inside `ns` and give who answered, or how it failed."""
    try:
        with connect(ns, address, port, proto, source_port=source_port, bind=bind, timeout=timeout) as connection:
            return connection.ask()
    except OSError as error:
        return failure(error)


def exchange(
    ns: Netns, address: str, port: int, data: bytes, *, proto: Protocol = "tcp", timeout: float = 2.0
) -> bytes | Failure:
    """Send bytes to any server (not a peerserver) and give the first bytes that come back."""
    try:
        with connect(ns, address, port, proto, timeout=timeout) as connection:
            connection.socket.sendall(data)
            return connection.socket.recv(65536) or RESET
    except OSError as error:
        return failure(error)


def http_get(ns: Netns, address: str, port: int, path: str = "/", *, timeout: float = 2.0) -> str | Failure:
    """Give the body of a page that a web server answers with 200; other statuses are raised."""
    try:
        with connect(ns, address, port, timeout=timeout) as connection:
            connection.socket.sendall(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            with connection.socket.makefile("rb") as file:
                reply = file.read().decode()
    except OSError as error:
        return failure(error)
    if not reply:
        return RESET
    head, _, body = reply.partition("\r\n\r\n")
    if " 200 " not in head.splitlines()[0]:
        raise AssertionError(f"{path} from {address}:{port}: {head}")
    return body


def until(
    condition: Callable[[], T], *, within: float = 15.0, every: float = 0.02, what: str = "the condition"
) -> T:
    """Give the first true value of `condition()`; fail when none comes in time."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {within:g} s (last: {value!r})")
        time.sleep(every)
    return value


# ---------------------------------------------------------------------------------------- before and after


def machine_state() -> str:
    """Describe what this machine's own namespace holds that a test could leave behind, for comparison.

    Rules without counters, namespaces, links, mounts, and processes by name (without the kernel's own, the
    dead, this one, its ancestors and its children).
    """
    run = subprocess.run
    options: dict[str, Any] = {"check": True, "capture_output": True, "text": True, "timeout": 30}
    rules = run(["nft", "--stateless", "list", "ruleset"], **options).stdout
    links = run(["ip", "-o", "link"], **options).stdout
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    sections = {
        "rules": [rules.strip()],
        "namespaces": sorted(each.name for each in DIRECTORY.glob("*")),
        "links": sorted(line.split(":")[1].strip() for line in links.splitlines()),
        "mounts": sorted(f"{line[4]} {line[line.index('-') + 1]}" for line in mounts),
        "processes": sorted(_processes()),
    }
    return "".join(f"[{name}]\n" + "".join(f"{line}\n" for line in lines) for name, lines in sections.items())


def _processes() -> list[str]:
    found: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            before, _, after = path.read_text().rpartition(")")
            pid, _, name = before.partition(" (")
            state, parent = after.split()[:2]
            if state != "Z":
                found[int(pid)] = (int(parent), name)
    family = {2}  # kthreadd
    ancestor = os.getpid()
    while ancestor in found and ancestor not in family:
        family.add(ancestor)
        ancestor = found[ancestor][0]
    hidden = {2, os.getpid()}
    return [name for pid, (parent, name) in found.items() if pid not in family and parent not in hidden]
