"""Case `connect`: what the rules cost a new connection, and an established one.

Each ruleset stands on a host of its own, with a client's machine before it and a container behind it. A process
each (bench.connector) makes the connections; they take turns. Rules of others are loaded in their shape by
iptables-restore: for their programs to write so many would take hours.
"""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from bench.stats import OURS, Aim, Series, quotient
from bench.worker import CONTAINER, Worker
from ctrport.firewall import ruleset
from ctrport.firewall.ruleset import Links
from ctrport.model.bindings import Binding, State
from ctrport.model.ports import PortMapping
from ctrport.model.workload import Key

if TYPE_CHECKING:
    from bench.bench import Bench
    from lab import Lab, Netns

HOST = "192.0.2.1"
FIRST = 10000
TURN = 200  # connections before the next one's turn
DOCKER, CNI, PLAIN, TRACKED = "Docker's chain", "CNI's chains", "no rules", "conntrack, no NAT"
FLOW = {"rate": "packets/s, one flow", "throughput": "throughput, one flow"}


def connect(bench: Bench) -> None:
    """Measure connections made through the last mapping, and one established flow, beside none at all."""
    sizes = bench.sizes()
    with ExitStack() as stack:
        workers: dict[tuple[str, int], _Worker] = {}
        for shape in (OURS, DOCKER, CNI):
            for size in sizes:
                workers[shape, size] = stack.enter_context(_Worker(shape, size))
        for shape in (PLAIN, TRACKED):
            workers[shape, 0] = stack.enter_context(_Worker(shape, 0))
        samples: dict[tuple[str, int], list[float]] = {key: [] for key in workers}
        for number in range(bench.rounds(16, 2)):
            for key, worker in workers.items():
                found = worker.ask("connect", TURN)
                if number > 0:
                    samples[key] += found
        for (shape, size), found in samples.items():
            what = f"new connection, 1 of {size:,}" if size else "new connection"
            x = size or None
            bench.add(Series(case="connect", what=what, who=shape, unit="µs", samples=tuple(found), x=x))
        _flow(bench, {key: w for key, w in workers.items() if key[1] in (0, sizes[-1]) and key[0] != CNI})
    _aims(bench, sizes)


def _flow(bench: Bench, workers: dict[tuple[str, int], _Worker]) -> None:
    for kind, unit in (("rate", "k/s"), ("throughput", "Gbit/s")):
        samples: dict[str, list[float]] = {}
        for _ in range(bench.rounds(8, 1)):
            for (shape, _size), worker in workers.items():
                samples.setdefault(shape, []).extend(worker.ask(kind, 1))
        for shape, found in samples.items():
            bench.add(Series(case="connect", what=FLOW[kind], who=shape, unit=unit, samples=tuple(found)))


def _aims(bench: Bench, sizes: tuple[int, ...]) -> None:
    def median(size: int, who: str) -> float | None:
        what = f"new connection, 1 of {size:,}" if size else "new connection"
        return bench.results.median("connect", what, who)

    one, last = median(1, OURS), sizes[-1]
    flat = quotient(median(last, OURS), one)
    bench.aim(Aim(case="connect", what=f"1 of {last:,}, of 1 of 1", value=flat, limit=1.05))
    many = 10000 if 10000 in sizes else last
    for shape in (DOCKER, CNI):
        times = quotient(median(many, shape), median(many, OURS))
        bench.aim(Aim(case="connect", what=f"{shape} with {many:,}, of ours", value=times, limit=8, at_least=True))
    for shape in (PLAIN, TRACKED):
        value = quotient(one, median(0, shape))
        bench.aim(Aim(case="connect", what=f"1 of 1, of {shape}", value=value, limit=1.15))
    for kind, words in FLOW.items():
        of = bench.results.median("connect", words, PLAIN)
        share = quotient(bench.results.median("connect", words), of)
        bench.aim(Aim(case="connect", what=f"{kind} of a flow, of {PLAIN}", value=share, limit=0.9, at_least=True))


class _Worker(Worker):
    """A client and a host with rules before the container: connections between the ends."""

    def __init__(self, shape: str, size: int) -> None:
        super().__init__(f"{shape} with {size}")
        self._shape, self._size = shape, size

    def _prepare(self, _: ExitStack, lab: Lab, container: Netns) -> tuple[Netns, tuple[str | Path, ...]]:
        _load(lab, self._shape, self._size)
        to = (HOST, FIRST + self._size - 1) if self._size else (CONTAINER, 80)
        connector = Path(__file__).with_name("connector.py")
        return lab.remote, ("-I", connector, container.path, to[0], str(to[1]))

    def ask(self, kind: str, number: int) -> list[float]:
        """Give the samples of one turn."""
        found: list[float] = self.tell(f"{kind} {number}")
        return found


def _load(lab: Lab, shape: str, size: int) -> None:
    ports = range(FIRST, FIRST + size)
    if shape == OURS:
        bindings = (_binding(port) for port in ports)
        lab.host.nft(ruleset.build(bindings, Links(endpoints=frozenset({"br0"}))).rebuild())
    elif shape == TRACKED:
        lab.host.nft(
            "table inet t { chain c { type filter hook forward priority filter; ct state invalid drop; }; }"
        )
    elif shape == DOCKER:
        dnat = f"-j DNAT --to-destination {CONTAINER}:80"
        _restore(lab, [":DOCKER - [0:0]"], [
            "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
            "-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
            "-A POSTROUTING -s 198.51.100.0/24 ! -o br0 -j MASQUERADE",
            *(f"-A DOCKER ! -i br0 -p tcp -m tcp --dport {port} {dnat}" for port in ports),
        ])  # fmt: skip
    elif shape == CNI:
        chains = [
            ":CNI-HOSTPORT-DNAT - [0:0]",
            ":CNI-HOSTPORT-SETMARK - [0:0]",
            *(f":CNI-DN-{p:020x} - [0:0]" for p in ports),
        ]
        rules = [
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000",
        ]
        for port in ports:
            chain = f"CNI-DN-{port:020x}"
            rules += [
                f"-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports {port} -j {chain}",
                f"-A {chain} -s 198.51.100.0/24 -p tcp -m tcp --dport {port} -j CNI-HOSTPORT-SETMARK",
                f"-A {chain} -s 127.0.0.1/32 -p tcp -m tcp --dport {port} -j CNI-HOSTPORT-SETMARK",
                f"-A {chain} -p tcp -m tcp --dport {port} -j DNAT --to-destination {CONTAINER}:80",
            ]
        _restore(lab, chains, rules)


def _binding(port: int) -> Binding:
    mapping = PortMapping(host_port=port, container_port=80)
    return Binding(
        owner=Key("default", f"c{port}"),
        mapping=mapping,
        state=State.ACTIVE,
        host_port=port,
        ipv4=IPv4Address(CONTAINER),
    )


def _restore(lab: Lab, chains: list[str], rules: list[str]) -> None:
    text = "\n".join(["*nat", *chains, *rules, "COMMIT"]) + "\n"
    lab.host.run("iptables-restore", "--noflush", input=text, timeout=300)
