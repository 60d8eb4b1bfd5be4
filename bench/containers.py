"""Cases with real containers: `run`, to a port that answers; `event`, from a start to its rule; `cli`."""

from __future__ import annotations

import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from bench.peers import FIRST, Missing, until_it_answers
from bench.stats import OURS, Aim, Series, quotient
from bench.timestamps import Starts
from lab import Lab, Netns

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.bench import Bench
    from bench.peers import Peer

NETLINK_NETFILTER, NFNLGRP_NFTABLES = 12, 7
SOL_NETLINK, ADD_MEMBERSHIP = 270, 1
NEW_ELEMENT = 10 << 8 | 12  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWSETELEM


def run(bench: Bench) -> None:
    """Measure a detached container from the command to the first answer, with 1, 100 and 1,000 ports."""
    peers = bench.cast.every()
    for ports in (1, 100, 1000):
        rounds = bench.rounds({1: 25, 100: 5, 1000: 3}[ports], {1: 2, 100: 1, 1000: 0}[ports])
        what = f"{ports} ports" if ports > 1 else "1 port"
        samples: dict[str, list[float]] = {p.name: [] for p in peers if ports == 1 or p.name != "bare ctr"}
        for number in range(rounds + (ports == 1)):
            for peer in [p for p in peers if p.name in samples]:
                if ports == 1000 and peer.name in {"docker", "ctr + CNI"} and number > 0:
                    continue  # half a minute each: once says enough
                found = _run_once(bench, peer, ports)
                if number > 0 or ports > 1:  # the first of all is warming up
                    samples[peer.name] += found
        for name, found in samples.items() if rounds else ():
            bench.add(_series("run", what, name, found, x=ports))
        for name, reason in bench.cast.missing.items():
            bench.add(Series(case="run", what=what, who=name, missing=reason))
    median = bench.results.median
    ours = median("run", "1 port")
    for peer_name, limit in (("docker", 0.6), ("podman", 0.8), ("bare ctr", 1.6)):
        value = quotient(ours, median("run", "1 port", peer_name))
        bench.aim(Aim(case="run", what=f"of {peer_name}, 1 port", value=value, limit=limit))
    bench.aim(
        Aim(
            case="run", what="1,000 ports, of 1 port", value=quotient(median("run", "1000 ports"), ours), limit=1.15
        )
    )


def _run_once(bench: Bench, peer: Peer, ports: int) -> list[float]:
    """Give the milliseconds of one run, nothing where it failed."""
    try:
        container, seconds = until_it_answers(peer, ports)
        peer.remove(container)
    except (Missing, AssertionError, subprocess.SubprocessError) as error:
        bench.say(f"{peer.name}, {ports} ports: {error}")
        return []
    return [seconds * 1000]


def _series(
    case: str, what: str, who: str, samples: list[float], *, unit: str = "ms", x: float | None = None
) -> Series:
    missing = "" if samples else "it gave no sample, see above"
    return Series(case=case, what=what, who=who, unit=unit, samples=tuple(samples), x=x, missing=missing)


def event(bench: Bench) -> None:
    """Measure from containerd's time stamp of /tasks/start to the kernel's word that the element is committed."""
    ours = bench.cast.ours()
    rounds = bench.rounds(200, 10)
    lab, containerd = ours.lab, ours.containerd
    lab.bridge("br-event", "203.0.113.1/24")
    netns = lab.container_like("event", "br-event", "203.0.113.2/24", gateway4="203.0.113.1")
    commits = _Commits(lab.host)
    samples = []
    with Starts(containerd.address) as starts:
        for number in range(rounds + 1):
            name = containerd.unique("event")
            options = ("--with-ns", f"network:{netns.path}", "--annotation", "ctrport.io/publish=9000:80")
            commits.clear()
            containerd.ctr("run", "-d", *options, containerd.image, name)
            begun, committed = starts.of(name), commits.first()
            if number > 0:
                samples.append((committed - begun) / 1e6)
            containerd.ctr("tasks", "delete", "--force", name)
            containerd.ctr("containers", "delete", name)
            commits.wait_for_silence()
    commits.close()
    found = _series("event", "/tasks/start to the committed rule", OURS, samples)
    bench.add(found)
    _event_peers(bench, max(3, rounds // 4))
    bench.aim(Aim(case="event", what="median", value=found.median, limit=4, unit="ms"))
    bench.aim(Aim(case="event", what="99th percentile", value=found.quantile(0.99), limit=15, unit="ms"))


def _event_peers(bench: Bench, rounds: int) -> None:
    """Measure what the others spend on the rules of one port alone, with no container and no event before it."""
    what = "/tasks/start to the committed rule"
    found: dict[str, list[float]] = {"CNI portmap ADD alone": [], "iptables as Docker calls it, alone": []}
    cni = bench.cast.get("ctr + CNI", lambda: _no_cni(bench))
    with Lab() as lab, Netns("portmap") as inside:
        lab.host.run("iptables", "-t", "nat", "-N", "DOCKER")
        lab.host.run("iptables", "-N", "DOCKER")
        for number in range(rounds):
            if cni is not None:
                address = [{"address": "198.51.100.2/24", "interface": 0}]
                before = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": address}
                plugin = {"type": "portmap"}
                words = (plugin, f"bench-{number}", inside)
                begun = time.perf_counter()
                cni.chain.call("ADD", *words, mappings=(FIRST, 1), result=before)  # type: ignore[attr-defined]
                found["CNI portmap ADD alone"].append((time.perf_counter() - begun) * 1000)
                cni.chain.call("DEL", *words, mappings=(FIRST, 1), result=None)  # type: ignore[attr-defined]
            begun = time.perf_counter()
            _as_docker(lab.host, 10000 + number)
            found["iptables as Docker calls it, alone"].append((time.perf_counter() - begun) * 1000)
    for name, samples in found.items():
        bench.add(_series("event", what, name, samples))


def _no_cni(bench: Bench) -> Peer:
    from bench.peers import CniCtr  # noqa: PLC0415 - only where no other case has made it

    return CniCtr(bench.stack, bench.cast.ours().containerd)


def _as_docker(host: Netns, port: int) -> None:
    """Publish one port with the six processes of Docker 20.10: each of three rules is looked for, then added."""
    there = ("-p", "tcp", "--dport", str(port), "-j", "DNAT", "--to-destination", "198.51.100.2:80")
    let = ("-d", "198.51.100.2/32", "-p", "tcp", "--dport", "80", "-j", "ACCEPT")
    own = ("-p", "tcp", "-s", "198.51.100.2", "-d", "198.51.100.2", "--dport", "80", "-j", "MASQUERADE")
    for table, chain, rule in (("nat", "DOCKER", there), ("filter", "DOCKER", let), ("nat", "POSTROUTING", own)):
        for action in ("-C", "-A"):
            host.run("iptables", "--wait", "-t", table, action, chain, *rule, check=False)


class _Commits:
    """When nf_tables says that it has committed elements: it does so right after the commit."""

    def __init__(self, host: Netns) -> None:
        self._times: queue.Queue[int] = queue.Queue()
        self._socket: socket.socket = host.call(self._open)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @staticmethod
    def _open() -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        opened.bind((0, 0))  # without an address of its own it is told nothing
        opened.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        opened.settimeout(0.2)
        return opened

    def _listen(self) -> None:
        while self._socket.fileno() >= 0:
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                return
            now = time.time_ns()
            if struct.unpack_from("=IH", data)[1] == NEW_ELEMENT:
                self._times.put(now)

    def clear(self) -> None:
        while not self._times.empty():
            self._times.get()

    def first(self) -> int:
        """Give when the first element since `clear` was committed, in nanoseconds since the epoch."""
        return self._times.get(timeout=20)

    def wait_for_silence(self) -> None:
        time.sleep(0.05)

    def close(self) -> None:
        self._socket.close()
        self._thread.join()


def cli(bench: Bench) -> None:
    """Measure commands that look, from the process's start to its end."""
    ours = bench.cast.ours()
    container = ours.run(1)
    host = ours.lab.host
    env = ours.cli.environment
    commands: dict[tuple[str, str], Callable[[], object]] = {
        ("python3 -c pass", "python"): lambda: host.run(sys.executable, "-c", "pass", env=env),
        ("--help", OURS): lambda: ours.cli("--help", check=True),
        ("ps", OURS): lambda: ours.cli("ps", check=True),
        ("port", OURS): lambda: ours.cli("port", container, check=True),
        ("ps", "ctr containers ls"): lambda: ours.containerd.ctr("containers", "list"),
        ("--help", "docker"): lambda: host.run("docker", "--help"),
        ("--help", "podman"): lambda: host.run("podman", "--help"),
    }
    if not bench.quick:
        commands |= _cli_of_daemons(bench)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
    for number in range(bench.rounds(30, 4)):
        for key, command in commands.items():
            begun = time.perf_counter()
            command()
            if number > 0:
                samples[key].append((time.perf_counter() - begun) * 1000)
    for (what, who), found in samples.items():
        bench.add(_series("cli", what, who, found))
    ours.remove(container)
    for what, limit in (("--help", 80), ("ps", 150), ("port", 150)):
        bench.aim(Aim(case="cli", what=what, value=bench.results.median("cli", what), limit=limit, unit="ms"))


def _cli_of_daemons(bench: Bench) -> dict[tuple[str, str], Callable[[], object]]:
    found: dict[tuple[str, str], Callable[[], object]] = {}
    if (docker := bench.cast.docker()) is not None:
        at = ("docker", "--host", docker.docker.address)
        running = docker.run(1)
        bench.stack.callback(docker.remove, running)
        found["ps", "docker"] = lambda: docker.lab.host.run(*at, "ps")
        found["port", "docker"] = lambda: docker.lab.host.run(*at, "port", running)
    if (podman := bench.cast.podman()) is not None:
        other = podman.run(1)
        bench.stack.callback(podman.remove, other)
        found["ps", "podman"] = lambda: podman.podman("ps")
        found["port", "podman"] = lambda: podman.podman("port", other)
    return found
