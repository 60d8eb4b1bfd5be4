"""Hypothesis strategies for the project's values."""

from __future__ import annotations

import copy
import json
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import strategies as st

from ctrport.model.policy import EVERY_PORT, PROTECTED, Policy, Rule
from ctrport.model.ports import MAX_PORT, PortMapping, Protocol
from ctrport.model.workload import Endpoint, Key, Workload

# Of the grammar, then what resembles it: full-width and Arabic digits, a long s, blanks, escapes, a direction
# override, a combining mark, a lone surrogate.
_GRAMMAR_CHARACTERS = "0123456789:-/.,=[]%tcpudsTCPUDS"
_LOOKALIKES = "\uff18\uff10\u0663\u00b2\u017f_+ \t\n\u00a0\u2028\x00\x1b\x7f\u009b\u202e\u0301\ud800\U0001f433"
_LONG_PIECES = (
    "target=",
    "published=",
    "protocol=",
    "mode=",
    "name=",
    ",",
    "80",
    "8000-8002",
    "tcp",
    "::1:",
    "=",
)

# Where policy is not the matter: pods may publish as plain containers may.
ANY_POD = Policy(allow=(Rule(kubernetes_namespaces=("*",), host_ports=(*PROTECTED, *EVERY_PORT)),))


def ports() -> st.SearchStrategy[int]:
    """Port numbers, both ends of their range among them."""
    return st.integers(1, MAX_PORT)


def protocols() -> st.SearchStrategy[Protocol]:
    """Every protocol that has ports."""
    return st.sampled_from(Protocol)


def host_ips() -> st.SearchStrategy[IPv4Address | IPv6Address | None]:
    """Host addresses that a mapping may name: none, the wildcards, and any unicast address."""
    v4 = st.integers(0, 2**32 - 1).map(IPv4Address)
    v6 = st.integers(0, 2**128 - 1).map(IPv6Address).filter(lambda ip: ip.ipv4_mapped is None)
    usual = st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"]).map(IPv4Address)  # noqa: S104 - a wildcard
    usual6 = st.sampled_from(["::", "::1", "2001:db8::1"]).map(IPv6Address)
    return st.none() | usual | usual6 | (v4 | v6).filter(lambda ip: not ip.is_multicast)


@st.composite
def port_mappings(draw: st.DrawFn, port: st.SearchStrategy[int] | None = None) -> PortMapping:
    """Any mapping: exact, from a pool, or left to the host; `port` limits the exact host ports."""
    how = draw(st.sampled_from(["exact", "pool", "automatic"]))
    pool = st.lists(ports(), min_size=2, max_size=2, unique=True).map(lambda pair: tuple(sorted(pair)))
    return PortMapping(
        container_port=draw(ports()),
        protocol=draw(protocols()),
        host_ip=draw(host_ips()),
        host_port=draw(ports() if port is None else port) if how == "exact" else None,
        host_port_pool=draw(pool) if how == "pool" else None,
    )


@st.composite
def port_ranges(draw: st.DrawFn, length: int) -> str:
    """Write `length` ports in a row, sometimes with leading zeros."""
    first = draw(st.integers(1, MAX_PORT + 1 - length))
    zeros = "0" * draw(st.integers(0, 2))
    return f"{zeros}{first}" if length == 1 else f"{zeros}{first}-{zeros}{first + length - 1}"


@st.composite
def spec_text(draw: st.DrawFn) -> str:
    """Specs within the grammar, short or long, in the ways that people write them."""
    length = draw(st.integers(1, 5))
    container = draw(port_ranges(length))
    protocol = draw(st.sampled_from(["", "tcp", "udp", "sctp", "TCP", "Udp"]))
    hosts = [st.just(""), port_ranges(length)]
    if length == 1:
        hosts += [st.sampled_from(["0", "0-0", "00"]), port_ranges(3)]
    published = draw(st.one_of(hosts))
    if (ip := draw(host_ips())) is not None:
        published = f"{ip if draw(st.booleans()) else f'[{ip}]'}:{published}"
    if draw(st.booleans()):
        fields = [f"target={container}", f"published={published}", f"protocol={protocol}", "mode=host"]
        return ",".join(draw(st.permutations(fields)))
    slash = "/" if protocol or draw(st.booleans()) else ""
    colon = ":" if published or draw(st.booleans()) else ""
    return f"{published}{colon}{container}{slash}{protocol}"


def hostile_text() -> st.SearchStrategy[str]:
    """Text that nobody should have written: any Unicode, near misses of the grammar, and far too much."""
    near = st.text(st.sampled_from(_GRAMMAR_CHARACTERS + _LOOKALIKES), max_size=40)
    pieces = st.lists(st.sampled_from(_LONG_PIECES), max_size=10).map("".join)
    many = st.builds(lambda piece, count: piece * count, near, st.sampled_from([1, 100, 5000]))
    spoilt = st.builds(lambda spec, at, odd: spec[:at] + odd + spec[at:], spec_text(), st.integers(0, 20), near)
    return st.text(st.characters(codec=None), max_size=80) | near | pieces | many | spoilt


def json_values() -> st.SearchStrategy[object]:
    """Anything that JSON can say."""
    text = st.text(st.characters(codec=None), max_size=10)
    plain = st.none() | st.booleans() | st.integers() | st.floats() | text
    one = st.builds(lambda name, value: {name: value}, text, plain)
    return plain | st.lists(plain, max_size=2) | one | st.lists(one, max_size=2)


@st.composite
def spoilt_json(draw: st.DrawFn, value: object) -> bytes:
    """Give JSON with one member replaced by something else or left out, or text that has been damaged."""
    spoilt = copy.deepcopy(value)
    how = draw(st.sampled_from(["member", "member", "member", "bytes", "depth", "digits"]))
    if how == "depth":
        return b"[" * draw(st.sampled_from([10, 1_000, 100_000]))
    if how == "digits":
        return json.dumps(spoilt).replace('"v1"', "9" * 5_000).encode()  # int() takes 4,300
    if how == "member":
        _spoil(draw, spoilt)
    text = json.dumps(spoilt, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if how == "bytes":
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=4)) + text[at + draw(st.integers(0, 8)) :]
    return text


def _spoil(draw: st.DrawFn, value: object) -> None:
    """Replace or remove one member of some object in it."""
    here = value
    while isinstance(here, dict) and here:
        name = draw(st.sampled_from(sorted(here)))
        inner = here[name]
        if isinstance(inner, list) and inner and draw(st.booleans()):
            inner = inner[0]
        elif not (isinstance(inner, dict) and inner) or draw(st.integers(0, 3)) == 0:
            if draw(st.integers(0, 4)) == 0:
                del here[name]
            else:
                here[name] = draw(json_values())
            return
        here = inner


def keys(names: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Key]:
    """Containers by namespace and id; by default few of them, so that they meet again."""
    few = st.sampled_from(["a", "b", "c", "d"])
    return st.builds(Key, st.sampled_from(["default", "k8s.io"]), few if names is None else names)


def endpoints() -> st.SearchStrategy[Endpoint]:
    """Where containers are reached: by IPv4, IPv6, both or nothing."""
    return st.builds(
        Endpoint,
        ipv4=st.none() | st.integers(1, 2**32 - 1).map(IPv4Address),
        ipv6=st.none() | st.integers(1, 2**128 - 1).map(IPv6Address),
    )


@st.composite
def workloads(
    draw: st.DrawFn,
    mappings: st.SearchStrategy[PortMapping] | None = None,
    owners: st.SearchStrategy[Key] | None = None,
) -> Workload:
    """Containers that run or do not, with up to four distinct mappings each, some asked for later."""
    requests = draw(st.lists(port_mappings() if mappings is None else mappings, max_size=4, unique=True))
    return Workload(
        key=draw(keys() if owners is None else owners),
        created_at=draw(st.integers(0, 5)),
        requests=tuple(requests),
        asked_at={mapping: draw(st.integers(0, 8)) for mapping in requests if draw(st.booleans())},
        endpoint=draw(st.none() | endpoints()),
    )


def contested_mappings(*, exact: bool = False) -> st.SearchStrategy[PortMapping]:
    """Give mappings for few host ports on few addresses, so that they get in each other's way."""
    port = st.integers(8080, 8082)
    pool = st.sampled_from([(8080, 8081), (8081, 8082), (8080, 8083)])
    how = [st.fixed_dictionaries({"host_port": port})]
    if not exact:
        how += [st.fixed_dictionaries({"host_port_pool": pool}), st.just({})]
    ips = ["0.0.0.0", "::", "127.0.0.1", "192.0.2.1", "2001:db8::1"]  # noqa: S104 - a wildcard
    return st.builds(
        lambda fields, **more: PortMapping(**fields, **more),
        st.one_of(how),
        container_port=st.integers(80, 81),
        protocol=protocols(),
        host_ip=st.sampled_from([None, *map(ip_address, ips)]),
    )
