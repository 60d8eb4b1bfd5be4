"""How published ports are printed."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrport.model.listing import Published, join, port_lines, ports_column
from ctrport.model.ports import PortMapping, Protocol, parse, parse_list
from strategies import host_ips, port_mappings, protocols

ANY = "0.0.0.0"  # noqa: S104 - printed, not bound


def published(ip: str, host: int, container: int, protocol: str = "tcp") -> Published:
    return Published(ip_address(ip), host, container, Protocol(protocol))


def some_published() -> st.SearchStrategy[set[Published]]:
    """Few ports, so that runs, gaps and crossings are common."""
    ips = host_ips().filter(lambda ip: ip is not None)
    few = st.integers(1, 8) | st.integers(65530, 65535)
    return st.sets(st.builds(Published, st.shared(ips, key="ip") | ips, few, few, protocols()), max_size=20)


WEB = [
    published("::", 8080, 80),
    published(ANY, 8080, 80),
    published(ANY, 53, 53, "udp"),
    published("127.0.0.1", 9000, 80),
    published(ANY, 53, 53),
]


def test_lines():
    """Every published port has a line, by container port, protocol, family and address."""
    assert port_lines(WEB) == [
        "53/tcp -> 0.0.0.0:53",
        "53/udp -> 0.0.0.0:53",
        "80/tcp -> 0.0.0.0:8080",
        "80/tcp -> 127.0.0.1:9000",
        "80/tcp -> [::]:8080",
    ]


@pytest.mark.parametrize(
    ("port", "protocol", "lines"),
    [
        (80, Protocol.TCP, ["0.0.0.0:8080", "127.0.0.1:9000", "[::]:8080"]),
        (53, Protocol.UDP, ["0.0.0.0:53"]),
        (53, None, ["0.0.0.0:53", "0.0.0.0:53"]),
        (80, Protocol.UDP, []),
        (81, Protocol.TCP, []),
        (None, Protocol.UDP, ["53/udp -> 0.0.0.0:53"]),
    ],
)
def test_lines_of_one_port(port: int | None, protocol: Protocol | None, lines: list[str]):
    """A port keeps its own lines and only their right-hand sides."""
    assert port_lines(WEB, port, protocol) == lines


@pytest.mark.parametrize(
    ("ports", "column"),
    [
        ([], ""),
        ([published(ANY, 8080, 80)], "0.0.0.0:8080->80/tcp"),
        ([published(ANY, 8080, 80)] * 2, "0.0.0.0:8080->80/tcp"),
        (
            WEB,
            (
                "0.0.0.0:53->53/tcp, 0.0.0.0:53->53/udp, "
                "0.0.0.0:8080->80/tcp, 127.0.0.1:9000->80/tcp, [::]:8080->80/tcp"
            ),
        ),
        (
            [published(ip, host, host + 5080) for host in (3001, 3000) for ip in ("::", ANY)],
            "0.0.0.0:3000-3001->8080-8081/tcp, [::]:3000-3001->8080-8081/tcp",
        ),
        (
            [published(ANY, host, port) for host, port in [(3000, 80), (3002, 81), (3003, 82)]],
            "0.0.0.0:3000->80/tcp, 0.0.0.0:3002-3003->81-82/tcp",
        ),
        (
            [published(ANY, host, port) for host, port in [(3000, 80), (3002, 82)]],
            "0.0.0.0:3000->80/tcp, 0.0.0.0:3002->82/tcp",
        ),
        (
            [published(ANY, host + port, port) for host in (8000, 9000) for port in (80, 81)],
            "0.0.0.0:8080-8081->80-81/tcp, 0.0.0.0:9080-9081->80-81/tcp",
        ),
        (
            [published(ANY, 80, 80), published(ANY, 81, 81, "udp")],
            "0.0.0.0:80->80/tcp, 0.0.0.0:81->81/udp",
        ),
    ],
)
def test_column(ports: list[Published], column: str):
    """Ports in a row of one address and protocol are one item; a gap on either side begins another."""
    assert ports_column(ports) == column


def test_column_is_short():
    """A range of ten thousand ports is one item."""
    everywhere = [published(ANY, port, port) for port in range(20000, 30000)]
    assert ports_column(everywhere) == "0.0.0.0:20000-29999->20000-29999/tcp"


@given(some_published())
def test_column_says_all(ports: set[Published]):
    """The column's runs, expanded again, are the published ports, each once."""
    expanded = []
    for item in filter(None, ports_column(ports).split(", ")):
        ip, host, last, container, _, protocol = re.fullmatch(
            r"(.+):(\d+)(?:-(\d+))?->(\d+)(?:-(\d+))?/(\w+)", item
        ).groups()
        expanded += [
            published(ip.strip("[]"), int(host) + i, int(container) + i, protocol)
            for i in range(int(last or host) - int(host) + 1)
        ]
    assert len(expanded) == len(ports)
    assert set(expanded) == ports


@given(some_published())
def test_lines_are_one_each(ports: set[Published]):
    """There is a line for each published port, whatever the order they are found in."""
    lines = port_lines(ports)
    assert lines == port_lines(sorted(ports, key=str, reverse=True))
    assert len(set(lines)) == len(ports)


@given(st.lists(port_mappings(), max_size=20))
def test_joined_specs_read_back_as_the_same_mappings(mappings: list[PortMapping]) -> None:
    """Specs in short mean what the mappings mean, in the same order."""
    assert parse_list(join(mappings)) == (tuple(mappings), ())


def test_a_run_of_ports_is_joined_to_one_range() -> None:
    """Ten thousand ports fit into one argument of a command."""
    assert join(parse("20000-29999:20000-29999")) == "20000-29999:20000-29999/tcp"
    assert join(parse("[2001:db8::1]:53-54:53-54/udp") + parse("80")) == "[2001:db8::1]:53-54:53-54/udp 80/tcp"
