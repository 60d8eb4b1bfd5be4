"""The grammar of port specs, and what one command may not say twice."""

from __future__ import annotations

import json
import time
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrport.errors import PortSpecError
from ctrport.model.ports import (
    PortMapping,
    Protocol,
    parse,
    parse_list,
    parse_port_argument,
    reject_duplicates,
)
from strategies import hostile_text, port_mappings, port_ranges, ports, protocols, spec_text

CASES = json.loads(Path(__file__).with_name("port_specs.json").read_text(encoding="utf-8"))["cases"]


def mapping(
    container_port: int,
    *,
    ip: str | None = None,
    host: int | None = None,
    pool: tuple[int, int] | None = None,
    protocol: Protocol = Protocol.TCP,
) -> PortMapping:
    return PortMapping(
        container_port=container_port,
        protocol=protocol,
        host_ip=None if ip is None else ip_address(ip),
        host_port=host,
        host_port_pool=pool,
    )


def of_case(binding: dict[str, str | None]) -> PortMapping:
    port, protocol = binding["container"].split("/")
    numbers = [int(number) for number in (binding["host"] or "").split("-") if number]
    return mapping(
        int(port),
        ip=binding["host_ip"],
        host=numbers[0] if len(numbers) == 1 else None,
        pool=tuple(numbers) if len(numbers) == 2 else None,
        protocol=Protocol(protocol),
    )


def fault(spec: str) -> tuple[str, str | None]:
    with pytest.raises(PortSpecError) as caught:
        parse(spec)
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize("case", [case for case in CASES if case["valid"]], ids=lambda case: case["spec"])
def test_docker_accepts(case: dict[str, Any]):
    """What Docker's command line accepts means the same here."""
    assert parse(case["spec"]) == tuple(of_case(binding) for binding in case["bindings"])


@pytest.mark.parametrize("spec", [case["spec"] for case in CASES if not case["valid"]])
def test_docker_refuses(spec: str):
    """What Docker's command line refuses is refused here, with the spec quoted and a hint."""
    message, hint = fault(spec)
    assert message.startswith(f"port spec {spec!a}: ")
    assert hint


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (":80", (mapping(80),)),
        (":80-81/udp", (mapping(80, protocol=Protocol.UDP), mapping(81, protocol=Protocol.UDP))),
        ("8000-8000:80", (mapping(80, host=8000),)),
        ("8000-8002:80-80", (mapping(80, pool=(8000, 8002)),)),
        ("00000000008080:80", (mapping(80, host=8080),)),
        ("0" * 5000 + "80", (mapping(80),)),
        ("65535:65535", (mapping(65535, host=65535),)),
        ("0.0.0.0:80:80", (mapping(80, ip="0.0.0.0", host=80),)),  # noqa: S104 - a wildcard
        ("[::]:80:80", (mapping(80, ip="::", host=80),)),
        ("[::FFFF:192.0.2.1]:80:80", (mapping(80, ip="192.0.2.1", host=80),)),
        ("127.0.0.1:9000-9001:80", (mapping(80, ip="127.0.0.1", pool=(9000, 9001)),)),
        ("target=80", (mapping(80),)),
        ("target=80,published=,protocol=", (mapping(80),)),
        ("target=80,published=::1:8080", (mapping(80, ip="::1", host=8080),)),
        ("target=80,name=web,app_protocol=http,mode=ingress", (mapping(80),)),
    ],
)
def test_meaning(spec: str, expected: tuple[PortMapping, ...]):
    """Less usual forms have the meaning that the grammar gives them."""
    assert parse(spec) == expected


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", "a container port is missing"),
        ("8080:", "a container port is missing"),
        ("0", "there is no container port 0"),
        ("8080:0/udp", "there is no container port 0"),
        ("0-1", "there is no container port 0"),
        ("0-2:80", "a range of host ports cannot begin at 0"),
        ("0-2:80-82", "a range of host ports cannot begin at 0"),
        ("0:80-82", "1 host port for 3 container ports"),
        ("8000-8001:80-82", "2 host ports for 3 container ports"),
        ("82-80", "'82-80' runs backwards"),
        ("80-81-82", "'80-81-82' is not a container port or a range of them"),
        ("http:80", "'http' is not a host port or a range of them"),
        ("80:80\n", r"'80\n' is not a container port or a range of them"),
        ("80/tcp/udp", "there is no protocol 'tcp/udp'"),
        ("80/icmp", "there is no protocol 'icmp'"),
        ("70000:80", "'70000' is above 65535, the highest port"),
        ("[]:80:80", "'[]' is not an IP address"),
        ("[[::1]]:80:80", "'[[::1]]' is not an IP address"),
        ("::1%lo:80:80", "host IP '::1%lo' has a zone"),
        ("224.0.0.1:80:80", "host IP '224.0.0.1' is a multicast address"),
        ("[ff02::1]:80:80", "host IP '[ff02::1]' is a multicast address"),
        ("target=80,8080", "'8080' is not KEY=VALUE"),
        ("target=80,=1", "there is no key ''"),
        ("target=80,Published=8080", "there is no key 'Published'"),
        ("target=80,target=81", "target is given twice"),
        ("published=8080", "target, the container port, is missing"),
        ("target=1:80", "'1:80' is not a container port or a range of them"),
        ("target=80/udp", "'80/udp' is not a container port or a range of them"),
    ],
)
def test_reasons(spec: str, reason: str):
    """A refusal says what is wrong with which part."""
    assert fault(spec)[0] == f"port spec {spec!a}: {reason}"


def test_quotes_safely():
    """A spec cannot move the reader's cursor, reverse the line, or fill the screen."""
    assert fault("\x1b[2J\u202e\uff18\uff10\ud800")[0] == (
        r"port spec '\x1b[2J\u202e\uff18\uff10\ud800': "
        r"'\x1b[2J\u202e\uff18\uff10\ud800' is not a container port or a range of them"
    )
    whales = r"\U0001f433" * 8
    assert fault("\U0001f433" * 100)[0].startswith(f"port spec '{whales}'... (100 characters): ")
    shortened = f"'{'9' * 80}'... (5000 characters)"
    assert fault("9" * 5000)[0] == f"port spec {shortened}: {shortened} is above 65535, the highest port"


@given(port_mappings())
def test_print_and_parse(one: PortMapping):
    """A printed mapping is a spec of the same mapping."""
    assert parse(str(one)) == (one,)


@given(spec_text())
def test_parse_and_print(spec: str):
    """A spec's mappings, printed and read as a list, are the same mappings."""
    assert parse_list(", ".join(map(str, parse(spec)))) == (parse(spec), ())


@given(hostile_text())
def test_no_other_error(spec: str):
    """No text makes the parser fail in another way, or print more than printable ASCII."""
    try:
        parse(spec)
    except PortSpecError as error:
        message = error.message + (error.hint or "")
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 500


@given(st.integers(1, 50), st.integers(1, 50), st.data())
def test_range_lengths(hosts: int, containers: int, data: st.DataObject):
    """Ranges of one length are paired in order, one container port draws from a pool, others are refused."""
    host, container = data.draw(port_ranges(hosts)), data.draw(port_ranges(containers))
    low, first = int(host.split("-")[0]), int(container.split("-")[0])
    if hosts == containers:
        assert parse(f"{host}:{container}") == tuple(mapping(first + i, host=low + i) for i in range(hosts))
    elif containers == 1:
        assert parse(f"{host}:{container}") == (mapping(first, pool=(low, low + hosts - 1)),)
    else:
        assert " container ports" in fault(f"{host}:{container}")[0]


def test_long_ranges_are_quick():
    """Ten thousand ports are read and compared in a moment."""
    start = time.process_time()
    mappings = parse("20000-29999:20000-29999")
    reject_duplicates(mappings)
    assert time.process_time() - start < 0.5  # 15 ms when measured alone
    assert mappings == tuple(mapping(port, host=port) for port in range(20000, 30000))


@pytest.mark.parametrize(
    ("one", "spec", "json_value"),
    [
        (
            mapping(80),
            "80/tcp",
            {
                "host_ip": None,
                "host_port": None,
                "host_port_pool": None,
                "container_port": 80,
                "protocol": "tcp",
            },
        ),
        (
            mapping(53, ip="::1", host=5353, protocol=Protocol.UDP),
            "[::1]:5353:53/udp",
            {
                "host_ip": "::1",
                "host_port": 5353,
                "host_port_pool": None,
                "container_port": 53,
                "protocol": "udp",
            },
        ),
        (
            mapping(80, ip="127.0.0.1", pool=(8000, 8002), protocol=Protocol.SCTP),
            "127.0.0.1:8000-8002:80/sctp",
            {
                "host_ip": "127.0.0.1",
                "host_port": None,
                "host_port_pool": [8000, 8002],
                "container_port": 80,
                "protocol": "sctp",
            },
        ),
        (
            mapping(80, ip="::"),
            "[::]::80/tcp",
            {
                "host_ip": "::",
                "host_port": None,
                "host_port_pool": None,
                "container_port": 80,
                "protocol": "tcp",
            },
        ),
    ],
)
def test_printing(one: PortMapping, spec: str, json_value: dict[str, object]):
    """A mapping prints as a canonical spec, and as what JSON can hold."""
    assert str(one) == spec
    assert json.loads(json.dumps(one.to_json())) == one.to_json() == json_value


@pytest.mark.parametrize(
    "values",
    [
        {"container_port": 0},
        {"container_port": 65536},
        {"host_port": 0},
        {"host_port": 65536},
        {"host_port_pool": (0, 2)},
        {"host_port_pool": (5, 5)},
        {"host_port_pool": (6, 5)},
        {"host_port_pool": (65535, 65536)},
        {"host_port": 80, "host_port_pool": (80, 81)},
        {"host_ip": IPv6Address("fe80::1%eth0")},
        {"host_ip": IPv6Address("::ffff:127.0.0.1")},
        {"host_ip": IPv4Address("224.0.0.1")},
    ],
)
def test_impossible_mappings(values: dict[str, Any]):
    """A mapping that no spec can say cannot be made."""
    with pytest.raises(ValueError, match=r"\d|exclude"):
        PortMapping(**{"container_port": 80} | values)


@pytest.mark.parametrize(
    ("value", "mappings", "refused"),
    [
        ("", (), []),
        (" ,\t\n,, ", (), []),
        ("80, 8081:81,", (mapping(80), mapping(81, host=8081)), []),
        ("80\n8081:81\t82", (mapping(80), mapping(81, host=8081), mapping(82)), []),
        ("80-81,90", (mapping(80), mapping(81), mapping(90)), []),
        ("target=80,published=8080 81", (mapping(80, host=8080), mapping(81)), []),
        ("82,83 target=80,mode=host", (mapping(82), mapping(83), mapping(80)), []),
        ("80,http,81,70000:82", (mapping(80), mapping(81)), ["'http'", "'70000:82'"]),
        ("80 target=81,8082:82 83", (mapping(80), mapping(83)), ["'target=81,8082:82'"]),
        ("80\u00a081", (), [r"'80\xa081'"]),
    ],
)
def test_lists(value: str, mappings: tuple[PortMapping, ...], refused: list[str]):
    """An annotation gives its good specs, and an error for each of the others."""
    good, errors = parse_list(value)
    assert good == mappings
    assert [error.message.removeprefix("port spec ").split(": ")[0] for error in errors] == refused


def test_lists_are_bounded():
    """A list of endless ranges is read up to every port of every protocol, with an error for the rest."""
    good, errors = parse_list("1-65535 " * 5000)
    assert good == 3 * tuple(mapping(port) for port in range(1, 65536))
    assert [error.message for error in errors] == [
        f"port spec '{'1-65535 ' * 10}'... (40000 characters): only 196605 mappings are read"
    ]


@settings(deadline=None)  # some of it asks for every port
@given(hostile_text())
def test_lists_never_raise(value: str):
    """Whatever an annotation holds, reading it gives mappings and errors."""
    good, errors = parse_list(value)
    assert {type(one) for one in good} <= {PortMapping}
    assert {type(error) for error in errors} <= {PortSpecError}


@given(st.lists(spec_text(), max_size=5), st.sampled_from([" ", ",", ", ", "\n"]))
def test_lists_of_specs(specs: list[str], separator: str):
    """Joined specs read as the specs one by one; long forms need white space between them."""
    if any("=" in spec for spec in specs):
        separator = "\n"
    assert parse_list(separator.join(specs)) == (tuple(one for spec in specs for one in parse(spec)), ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", (80, Protocol.TCP)),
        ("80/", (80, Protocol.TCP)),
        ("080/UDP", (80, Protocol.UDP)),
        ("65535/sctp", (65535, Protocol.SCTP)),
    ],
)
def test_port_argument(text: str, expected: tuple[int, Protocol]):
    """A container port is named by number and protocol, tcp unless said otherwise."""
    assert parse_port_argument(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "/udp", "80-81", "8080:80", "80/icmp", "http", "65536", " 80", "\uff18\uff10"]
)
def test_port_argument_refused(text: str):
    """Anything but one container port is refused and quoted."""
    with pytest.raises(PortSpecError) as caught:
        parse_port_argument(text)
    assert caught.value.message.startswith(f"port spec {text!a}: ")


@given(hostile_text())
def test_port_argument_no_other_error(text: str):
    """No text makes the reading of a port argument fail in another way."""
    try:
        port, protocol = parse_port_argument(text)
    except PortSpecError:
        return
    assert parse_port_argument(f"{port}/{protocol}") == (port, protocol)


@pytest.mark.parametrize(
    "specs",
    [
        "8080:80 8080:80",
        "8080:80 8080:90",
        "8080:80 127.0.0.1:8080:80",
        "127.0.0.1:8080:80 8080:80",
        "[::1]:8080:80 8080:80",
        "8080:80 0.0.0.0:8080:90",
        "8080:80 [::]:8080:90",
        "0.0.0.0:8080:80 127.0.0.1:8080:80",
        "[::1]:8080:80 [::]:8080:80",
        "127.0.0.1:8080:80 127.0.0.1:8080:81",
        "127.0.0.1:8080:80 [::ffff:127.0.0.1]:8080:81",
        "8000-8010:80-90 8005:1",
        "8080:53/udp 8080:80 8080:54/udp",
    ],
)
def test_duplicates(specs: str):
    """One host port cannot be asked for twice where addresses and protocol overlap."""
    with pytest.raises(PortSpecError, match="is asked for twice"):
        reject_duplicates(parse_list(specs)[0])


@pytest.mark.parametrize(
    "specs",
    [
        "8080:80 9090:80",
        "53:53/tcp 53:53/udp 53:53/sctp",
        "127.0.0.1:80:80 127.0.0.2:80:80 [::1]:80:80",
        "0.0.0.0:80:80 [::]:80:80",
        "0.0.0.0:80:80 [::1]:80:80",
        "80 80 80",
        "8000-8002:80 8000-8002:81 8000:82",
    ],
)
def test_no_duplicates(specs: str):
    """Other ports, protocols and addresses, pools and the host's choice go together."""
    reject_duplicates(parse_list(specs)[0])


def test_duplicate_message():
    """The refusal names the host port and both mappings."""
    with pytest.raises(PortSpecError) as caught:
        reject_duplicates(parse_list("8080:80 [::1]:8080:90")[0])
    assert caught.value.message == (
        "host port 8080/tcp is asked for twice: by 8080:80/tcp and by [::1]:8080:90/tcp"
    )


@given(st.lists(port_mappings(port=st.integers(1, 3)), max_size=8))
def test_duplicates_are_overlaps(mappings: list[PortMapping]):
    """A duplicate is found exactly when two mappings of the list overlap, whatever their order."""

    def overlap(a: PortMapping, b: PortMapping) -> bool:
        if a.host_port is None or (a.host_port, a.protocol) != (b.host_port, b.protocol):
            return False
        if a.host_ip is None or b.host_ip is None:
            return True
        same_family = a.host_ip.version == b.host_ip.version
        return same_family and (a.host_ip == b.host_ip or a.host_ip.is_unspecified or b.host_ip.is_unspecified)

    expected = any(overlap(a, b) for i, a in enumerate(mappings) for b in mappings[:i])
    for order in (mappings, mappings[::-1]):
        try:
            reject_duplicates(order)
        except PortSpecError:
            assert expected
        else:
            assert not expected


@given(ports(), protocols())
def test_port_argument_round_trip(port: int, protocol: Protocol):
    """Every container port can be named."""
    assert parse_port_argument(f"{port}/{protocol}") == (port, protocol)
