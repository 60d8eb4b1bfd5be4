"""Who gets which host port: the rules of conflict one by one, then what holds whatever happens."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrport.claims import Claims, merged
from ctrport.model import ports
from ctrport.model.bindings import Binding, Change, Host, Incumbent, Listener, State, is_wildcard
from ctrport.model.ledger import ALL_ALLOCATED, Ledger
from ctrport.model.ports import Protocol
from ctrport.model.vacancies import Vacancies
from ctrport.model.workload import Endpoint, Key, Pod, Workload
from strategies import ANY_POD, contested_mappings, keys, workloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ACTIVE, WAITING, REFUSED = State.ACTIVE, State.WAITING, State.REFUSED
BOTH = Endpoint(ipv4=IPv4Address("10.0.0.2"), ipv6=IPv6Address("fd00::2"))
ONLY4 = Endpoint(ipv4=IPv4Address("10.0.0.2"))
NO_RELAY = (
    "[::1] cannot be published: the kernel routes no packet from ::1 to a container; "
    "a watcher relays tcp where relay_ipv6_loopback is true"
)
ONLY6 = Endpoint(ipv6=IPv6Address("fd00::2"))


def key(name: str) -> Key:
    return Key("default", name)


def container(name: str, specs: str, created_at: int = 0, endpoint: Endpoint | None = BOTH) -> Workload:
    mappings, errors = ports.parse_list(specs)
    assert not errors
    return Workload(key=key(name), created_at=created_at, requests=mappings, endpoint=endpoint)


def settled(
    *wanted: Workload, host: Host | None = None, incumbents: dict[Incumbent, set[int]] | None = None
) -> Ledger:
    ledger = Ledger(host, incumbents, ANY_POD)
    for workload in wanted:
        ledger.put(workload)
    ledger.settle()
    return ledger


def outcome(ledger: Ledger, name: str) -> list[tuple[int | None, State]]:
    return [(b.host_port, b.state) for b in ledger.bindings(key(name))]


def state(ledger: Ledger, name: str) -> State:
    (binding,) = ledger.bindings(key(name))
    return binding.state


def reason(ledger: Ledger, name: str) -> str:
    (binding,) = ledger.bindings(key(name))
    return binding.reason


# ------------------------------------------------------------------------------------------------- conflicts


@pytest.mark.parametrize(
    ("first", "second", "second_state"),
    [
        ("8080:80", "8080:80", WAITING),
        ("8080:80", "8081:80", ACTIVE),
        ("8080:80", "8080:80/udp", ACTIVE),
        ("8080:80/sctp", "8080:80/udp", ACTIVE),
        ("8080:80", "192.0.2.1:8080:80", WAITING),
        ("192.0.2.1:8080:80", "8080:80", WAITING),
        ("192.0.2.1:8080:80", "192.0.2.1:8080:80", WAITING),
        ("192.0.2.1:8080:80", "192.0.2.2:8080:80", ACTIVE),
        ("192.0.2.1:8080:80", "127.0.0.1:8080:80", ACTIVE),
        ("0.0.0.0:8080:80", "192.0.2.1:8080:80", WAITING),
        ("0.0.0.0:8080:80", "[::]:8080:80", ACTIVE),
        ("0.0.0.0:8080:80", "[2001:db8::1]:8080:80", ACTIVE),
        ("[::]:8080:80", "[2001:db8::1]:8080:80", WAITING),
        ("[2001:db8::1]:8080:80", "[2001:db8::2]:8080:80", ACTIVE),
        ("0.0.0.0:8080:80", "8080:80", WAITING),
        ("[::]:8080:80", "8080:80", WAITING),
        ("8080:80", "[2001:db8::1]:8080:80", WAITING),
    ],
)
def test_who_conflicts_with_whom(first: str, second: str, second_state: State):
    """A wildcard takes every address of its family; families, protocols and addresses are separate."""
    ledger = settled(container("first", first, 1), container("second", second, 2))
    assert (state(ledger, "first"), state(ledger, "second")) == (ACTIVE, second_state)


def test_a_wildcard_of_a_container_without_ipv6_leaves_ipv6_free():
    """What a container cannot serve it does not hold."""
    ledger = settled(container("first", "8080:80", 1, ONLY4), container("second", "[::]:8080:80", 2))
    assert (state(ledger, "first"), state(ledger, "second")) == (ACTIVE, ACTIVE)
    ledger = settled(container("first", "8080:80", 1, ONLY4), container("second", "8080:80", 2, ONLY6))
    assert (state(ledger, "first"), state(ledger, "second")) == (ACTIVE, ACTIVE)


def test_the_older_container_has_the_port():
    """Creation decides, not who was heard of first, and the loser is told who holds it and where."""
    ledger = settled(container("young", "8080:80", 2), container("old", "192.0.2.1:8080:80", 1))
    assert state(ledger, "old") is ACTIVE
    assert state(ledger, "young") is WAITING
    assert reason(ledger, "young") == "192.0.2.1:8080/tcp is held by container default/old"


def test_one_moment_of_creation():
    """Containers created at the same nanosecond are served by name, the same every time."""
    for order in itertools.permutations(["a", "b", "c"]):
        ledger = settled(*(container(name, "8080:80", 7) for name in order))
        assert [state(ledger, name) for name in ("a", "b", "c")] == [ACTIVE, WAITING, WAITING]


def test_a_loser_holds_nothing():
    """One that waits for a wildcard does not keep a third from an address that is free."""
    ledger = settled(
        container("first", "192.0.2.1:8080:80", 1),
        container("second", "8080:80", 2),
        container("third", "192.0.2.2:8080:80", 3),
    )
    assert [state(ledger, name) for name in ("first", "second", "third")] == [ACTIVE, WAITING, ACTIVE]


def test_the_next_in_line_gets_the_port():
    """When the holder goes the oldest that waits has it; the changes say so."""
    ledger = settled(*(container(name, "8080:80", n) for n, name in enumerate("abc")))
    ledger.remove(key("a"))
    changes = ledger.settle()
    assert [(c.old and c.old.owner.id, c.new and (c.new.owner.id, c.new.state)) for c in changes][:2] == [
        ("a", None),
        ("b", ("b", ACTIVE)),
    ]
    assert reason(ledger, "c") == "8080/tcp is held by container default/b"


def test_a_stopped_container_lets_go():
    """Without an address nothing is held; after its restart the older container has the port again."""
    old, young = container("old", "8080:80", 1), container("young", "8080:80", 2)
    ledger = settled(old, young)
    ledger.put(container("old", "8080:80", 1, endpoint=None))
    ledger.settle()
    assert outcome(ledger, "old") == []
    assert state(ledger, "young") is ACTIVE
    ledger.put(old)
    ledger.settle()
    assert (state(ledger, "old"), state(ledger, "young")) == (ACTIVE, WAITING)


def test_one_container_that_asks_twice():
    """Of one container's overlapping requests the first in its list has the port."""
    ledger = settled(container("a", "8080:80 8080:81"))
    assert outcome(ledger, "a") == [(8080, ACTIVE), (8080, WAITING)]
    assert ledger.bindings(key("a"))[1].reason == "8080/tcp is held by container default/a"


def test_a_new_address_is_a_change():
    """A container that comes back with another address is bound to that one."""
    ledger = settled(container("a", "8080:80"))
    moved = Endpoint(ipv4=IPv4Address("10.0.0.9"), ipv6=BOTH.ipv6)
    ledger.put(container("a", "8080:80", endpoint=moved))
    changes = ledger.settle()
    assert [(c.old and c.old.ipv4, c.new and c.new.ipv4) for c in changes] == [
        (BOTH.ipv4, None),
        (None, moved.ipv4),
    ]


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("spec", "endpoint", "message"),
    [
        ("[::1]:8080:80", BOTH, NO_RELAY),
        ("192.0.2.9:8080:80", BOTH, "host IP 192.0.2.9 is not an address of this host"),
        ("[2001:db8::9]:8080:80", BOTH, "host IP 2001:db8::9 is not an address of this host"),
        ("[::]:8080:80", ONLY4, "the container has no IPv6 address"),
        ("[2001:db8::1]:8080:80", ONLY4, "the container has no IPv6 address"),
        ("0.0.0.0:8080:80", ONLY6, "the container has no IPv4 address"),
        ("127.0.0.1::80", ONLY6, "the container has no IPv4 address"),
        ("8080:80", Endpoint(), "the container has no IP address"),
        ("80", Endpoint(), "the container has no IP address"),
    ],
)
def test_refusals(spec: str, endpoint: Endpoint, message: str):
    """What can never be served is refused with its reason, and holds nothing."""
    host = Host(addresses=frozenset({ip_address("192.0.2.1"), ip_address("2001:db8::1")}))
    ledger = settled(container("a", spec, 1, endpoint), container("b", "8080:80", 2), host=host)
    assert (state(ledger, "a"), reason(ledger, "a")) == (REFUSED, message)
    assert state(ledger, "b") is ACTIVE


def test_a_host_that_relays_publishes_tcp_on_ipv6_loopback():
    """For a container with either address; udp has no relay, and who has [::] for IPv6 stands in the way."""
    host = Host(addresses=frozenset(), relays=True)
    for endpoint in (BOTH, ONLY4, ONLY6):
        ledger = settled(container("a", "[::1]:8080:80", 1, endpoint), host=host)
        (binding,) = ledger.bindings(key("a"))
        assert (binding.state, binding.families) == (ACTIVE, (6,))
        assert (binding.ipv4, binding.ipv6) == (endpoint.ipv4, endpoint.ipv6)
    ledger = settled(container("a", "[::1]:8080:80/udp"), host=host)
    assert (state(ledger, "a"), reason(ledger, "a")) == (REFUSED, NO_RELAY)
    for endpoint, expected in ((BOTH, WAITING), (ONLY4, ACTIVE)):
        ledger = settled(
            container("a", "8080:80", 1, endpoint), container("b", "[::1]:8080:80", 2, ONLY4), host=host
        )
        assert state(ledger, "b") is expected
    host = Host(relays=True, listeners=listening(":::8080", (6,)).listeners)
    ledger = settled(container("a", "[::1]:8080:80"), host=host)
    assert state(ledger, "a") is WAITING


def test_every_address_of_loopback_is_this_host_s():
    """127.0.0.0/8 needs no address of its own."""
    ledger = settled(container("a", "127.8.8.8:8080:80"), host=Host(addresses=frozenset()))
    assert state(ledger, "a") is ACTIVE


def test_an_address_that_comes_and_goes():
    """A host IP is judged again when the host's addresses are read again."""
    ledger = settled(container("a", "192.0.2.9:8080:80"), host=Host(addresses=frozenset()))
    assert state(ledger, "a") is REFUSED
    ledger.set_host(Host(addresses=frozenset({ip_address("192.0.2.9")})))
    assert [c.new and c.new.state for c in ledger.settle()] == [ACTIVE]
    ledger.set_host(Host(addresses=frozenset()))
    assert [c.new and c.new.state for c in ledger.settle()] == [REFUSED]


# -------------------------------------------------------------------------------------------------- listeners


def listening(spec: str, families: tuple[int, ...] = (4,), holder: str = "") -> Host:
    address, _, port = spec.rpartition(":")
    listener = Listener(Protocol.TCP, int(port), ip_address(address), families, holder)
    return Host(listeners=(listener,))


@pytest.mark.parametrize(
    ("listener", "families", "spec", "expected"),
    [
        ("0.0.0.0:8080", (4,), "8080:80", WAITING),
        ("0.0.0.0:8080", (4,), "[::]:8080:80", ACTIVE),
        ("0.0.0.0:8080", (4,), "8081:80", ACTIVE),
        ("0.0.0.0:8080", (4,), "8080:80/udp", ACTIVE),
        ("127.0.0.1:8080", (4,), "8080:80", WAITING),
        ("127.0.0.1:8080", (4,), "192.0.2.1:8080:80", ACTIVE),
        ("127.0.0.1:8080", (4,), "127.0.0.1:8080:80", WAITING),
        (":::8080", (4, 6), "0.0.0.0:8080:80", WAITING),
        (":::8080", (6,), "0.0.0.0:8080:80", ACTIVE),
    ],
)
def test_a_listener_of_the_host_is_not_shadowed(
    listener: str, families: tuple[int, ...], spec: str, expected: State
):
    """A program that listens keeps its port, on its address, in its families and protocol."""
    ledger = settled(container("a", spec), host=listening(listener, families))
    assert state(ledger, "a") is expected


def test_who_listens_is_told():
    """The reason names the process where it is known, and the address."""
    ledger = settled(container("a", "8080:80"), host=listening("127.0.0.1:8080", holder="redis-server (pid 811)"))
    assert reason(ledger, "a") == "127.0.0.1:8080/tcp is held by redis-server (pid 811)"
    ledger = settled(container("a", "8080:80"), host=listening(":::8080", (6,)))
    assert reason(ledger, "a") == "[::]:8080/tcp is held by a process that listens there"


def test_a_listener_that_comes_later_takes_nothing():
    """Packets do not reach it any more: the published port stays, also for a ledger that is made anew."""
    ledger = settled(container("a", "8080:80"))
    ledger.set_host(listening("0.0.0.0:8080"))
    assert ledger.settle() == []
    incumbent = Incumbent(key("a"), Protocol.TCP, None, 80)
    again = settled(container("a", "8080:80"), host=listening("0.0.0.0:8080"), incumbents={incumbent: {8080}})
    assert state(again, "a") is ACTIVE
    another = settled(container("b", "8080:80"), host=listening("0.0.0.0:8080"), incumbents={incumbent: {8080}})
    assert state(another, "b") is WAITING


def test_a_port_that_a_listener_gave_up():
    """Once the host's sockets have been read again the container has the port."""
    ledger = settled(container("a", "8080:80"), host=listening("0.0.0.0:8080"))
    ledger.set_host(Host())
    assert [c.new and c.new.state for c in ledger.settle()] == [ACTIVE]


# ------------------------------------------------------------------------------------------------ translations

ANY = ip_address(0)  # 0.0.0.0


def translation(port: int = 8080, address: str = str(ANY), holder: str = "Docker") -> Listener:
    return Listener(Protocol.TCP, port, ip_address(address), (4,), holder, translated=True)


def test_a_translated_port_is_told_as_such():
    """By who does it, with the address where it is one."""
    ledger = settled(container("a", "8080:80"), host=Host(listeners=(translation(),)))
    assert (state(ledger, "a"), reason(ledger, "a")) == (WAITING, "8080/tcp is translated by Docker")
    ledger = settled(container("a", "8080:80"), host=Host(listeners=(translation(address="192.0.2.1"),)))
    assert reason(ledger, "a") == "192.0.2.1:8080/tcp is translated by Docker"
    assert ledger.overlaps() == []


def test_one_of_two_in_the_way_goes():
    """The reason follows; with the last one gone the port is given out."""
    proxy = Listener(Protocol.TCP, 8080, ANY, (4,), "docker-proxy (pid 9)")
    ledger = settled(container("a", "8080:80"), host=Host(listeners=(translation(), proxy)))
    assert reason(ledger, "a") == "8080/tcp is translated by Docker"
    ledger.set_listeners([proxy])
    ledger.settle()
    assert reason(ledger, "a") == "0.0.0.0:8080/tcp is held by docker-proxy (pid 9)"
    ledger.set_listeners([])
    assert [c.new and c.new.state for c in ledger.settle()] == [ACTIVE]


def test_overlaps_are_what_is_served_all_the_same():
    """Who comes later takes nothing, and can be told."""
    ledger = settled(container("a", "8080:80 8081:80"), container("b", "8082:80"))
    late = [translation(8080), translation(8082, "192.0.2.1", "kube-proxy"), translation(9)]
    ledger.set_listeners(late)
    assert ledger.settle() == []
    assert ledger.overlaps() == [
        (ledger.bindings(key("a"))[0], late[0]),
        (ledger.bindings(key("b"))[0], late[1]),
    ]


# -------------------------------------------------------------------------------- ports of the host's choice

SMALL = Host(automatic=(40000, 40002))


def test_a_pool_takes_the_first_free_port():
    """Containers get the pool's ports in order, the one too many waits, and moves up when one is free."""
    ledger = settled(*(container(name, "8080-8081:80", n) for n, name in enumerate("abc")))
    assert [outcome(ledger, name) for name in "abc"] == [[(8080, ACTIVE)], [(8081, ACTIVE)], [(None, WAITING)]]
    assert reason(ledger, "c") == ALL_ALLOCATED == "all ports are allocated"
    ledger.remove(key("a"))
    ledger.settle()
    assert outcome(ledger, "c") == [(8080, ACTIVE)]


def test_exact_before_pools_before_automatic():
    """In one pass exact ports are given out first, whoever is older."""
    host = Host(automatic=(8080, 8082))
    ledger = settled(
        container("automatic", "80", 1),
        container("pool", "8080-8081:80", 2),
        container("exact", "8080:80", 3),
        host=host,
    )
    assert [outcome(ledger, n) for n in ("exact", "pool", "automatic")] == [
        [(8080, ACTIVE)],
        [(8081, ACTIVE)],
        [(8082, ACTIVE)],
    ]


def test_an_automatic_port_is_from_the_host_s_range():
    """Reserved ports and those that somebody listens on are passed over."""
    host = Host(
        automatic=(40000, 40009),
        reserved=frozenset({40000, 40002}),
        listeners=(Listener(Protocol.TCP, 40001, ip_address("127.0.0.1"), (4,)),),
    )
    ledger = settled(container("a", "80 81"), host=host)
    assert outcome(ledger, "a") == [(40003, ACTIVE), (40004, ACTIVE)]


def test_a_pool_may_use_reserved_ports():
    """Reserved means: not for the choice of the kernel. A pool was named by somebody."""
    ledger = settled(container("a", "8080-8081:80"), host=Host(reserved=frozenset({8080})))
    assert outcome(ledger, "a") == [(8080, ACTIVE)]


def test_tcp_and_udp_asked_together_have_one_number():
    """A port that is free for one protocol only is passed over for the pair."""
    host = Host(automatic=(40000, 40009), listeners=(Listener(Protocol.UDP, 40000, ip_address("::"), (4, 6)),))
    ledger = settled(container("a", "53/tcp 53/udp 80/tcp"), host=host)
    assert outcome(ledger, "a") == [(40001, ACTIVE), (40001, ACTIVE), (40000, ACTIVE)]


def test_one_automatic_port_serves_both_families():
    """The number is the same for IPv4 and IPv6, and free in both."""
    host = Host(automatic=(40000, 40009), listeners=(Listener(Protocol.TCP, 40000, ip_address("::1"), (6,)),))
    ledger = settled(container("a", "80"), host=host)
    (binding,) = ledger.bindings(key("a"))
    assert (binding.host_port, binding.ipv4, binding.ipv6) == (40001, BOTH.ipv4, BOTH.ipv6)


def test_an_exhausted_range_of_one_protocol_is_free_for_others():
    """That tcp has used up the range is nothing to udp, nor IPv4 to IPv6."""
    ledger = settled(container("a", "0.0.0.0::80 0.0.0.0::81 0.0.0.0::82", 1), host=SMALL)
    for number, spec in enumerate(["80/udp", "[::]::80"]):
        ledger.put(container(f"x{number}", spec, 2))
        ledger.settle()
        assert outcome(ledger, f"x{number}") == [(40000, ACTIVE)]
    ledger.put(container("late", "0.0.0.0::80", 3))
    ledger.settle()
    assert outcome(ledger, "late") == [(None, WAITING)]


def test_a_restarted_task_keeps_its_automatic_port():
    """Stopped and started again, also with another address, a container has the number that it had."""
    ledger = settled(container("a", "80", 1), container("b", "80 8080-8081:81", 2), host=SMALL)
    before = outcome(ledger, "b")
    ledger.put(container("b", "80 8080-8081:81", 2, endpoint=None))
    ledger.remove(key("a"))
    ledger.settle()
    ledger.put(container("b", "80 8080-8081:81", 2, endpoint=ONLY4))
    ledger.settle()
    assert outcome(ledger, "b") == before == [(40001, ACTIVE), (8080, ACTIVE)]


def test_a_former_port_that_somebody_has_now():
    """It is taken: the restarted task gets another one."""
    ledger = settled(container("a", "80", 2), host=SMALL)
    ledger.put(container("a", "80", 2, endpoint=None))
    ledger.put(container("b", "40000:80", 1))
    ledger.settle()
    ledger.put(container("a", "80", 2))
    ledger.settle()
    assert (outcome(ledger, "a"), outcome(ledger, "b")) == ([(40001, ACTIVE)], [(40000, ACTIVE)])


def test_a_removed_container_leaves_no_memory():
    """A new container of the same name gets the first free port."""
    ledger = settled(container("x", "80", 0), container("a", "80", 1), host=SMALL)
    ledger.remove(key("a"))
    ledger.remove(key("x"))
    ledger.settle()
    ledger.put(container("a", "80", 5))
    ledger.settle()
    assert outcome(ledger, "a") == [(40000, ACTIVE)]


def test_incumbents_keep_their_numbers():
    """A writer that starts anew gives what the kernel serves already, whoever is older."""
    incumbents = {
        Incumbent(key("a"), Protocol.TCP, None, 80): {40002},
        Incumbent(key("b"), Protocol.TCP, None, 80): {8081},
        Incumbent(key("c"), Protocol.TCP, None, 80): {50000},  # outside the range of today
    }
    ledger = settled(
        container("c", "80", 0),
        container("a", "80", 1),
        container("b", "8080-8081:80", 2),
        host=SMALL,
        incumbents=incumbents,
    )
    assert [outcome(ledger, n) for n in "abc"] == [[(40002, ACTIVE)], [(8081, ACTIVE)], [(40000, ACTIVE)]]


# ------------------------------------------------------------------------------------------------- properties


class Put(NamedTuple):
    workload: Workload


class Remove(NamedTuple):
    key: Key


Event = Put | Remove


def is_free_of_itself(workload: Workload) -> bool:
    """Whether no two requests of one container overlap."""
    try:
        ports.reject_duplicates(workload.requests)
    except ports.PortSpecError:
        return False
    return True


def events(*, exact: bool) -> st.SearchStrategy[list[Event]]:
    wanted = workloads(contested_mappings(exact=exact))
    if exact:
        wanted = wanted.filter(is_free_of_itself)
    return st.lists(wanted.map(Put) | keys().map(Remove), max_size=12)


def hosts() -> st.SearchStrategy[Host]:
    listener = st.builds(
        Listener,
        st.sampled_from(Protocol),
        st.integers(8080, 8083),
        st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"]).map(ip_address),  # noqa: S104 - not bound
        st.just((4,)),
    )
    known = frozenset(map(ip_address, ("192.0.2.1", "2001:db8::1")))
    return st.builds(
        Host,
        addresses=st.sampled_from([None, frozenset(), known]),
        automatic=st.sampled_from([(8080, 8083), (8083, 8085)]),
        reserved=st.frozensets(st.integers(8080, 8085), max_size=2),
        listeners=st.lists(listener, max_size=2).map(tuple),
    )


def apply(ledger: Ledger, event: Event) -> None:
    if isinstance(event, Put):
        ledger.put(event.workload)
    else:
        ledger.remove(event.key)


def everything(ledger: Ledger) -> dict[Key, tuple[Binding, ...]]:
    return {owner: ledger.bindings(owner) for owner in sorted(ledger.owners())}


def decisions(ledger: Ledger) -> dict[Key, list[tuple[object, ...]]]:
    """Give what was decided, without the reasons in words."""
    return {
        owner: [(b.mapping, b.host_port, b.state) for b in found]
        for owner, found in everything(ledger).items()
        if found
    }


def last_words(history: Iterable[Event]) -> dict[Key, Workload]:
    """Give what each container asks for after all events."""
    final: dict[Key, Workload] = {}
    for event in history:
        if isinstance(event, Put):
            final[event.workload.key] = event.workload
        else:
            final.pop(event.key, None)
    return final


def overlap(one: Binding, other: Binding) -> bool:
    """Whether two bindings want one socket: written apart from the ledger's own rule."""
    if (one.mapping.protocol, one.host_port) != (other.mapping.protocol, other.host_port):
        return False
    for mine, theirs in ((one.ipv4, other.ipv4), (one.ipv6, other.ipv6)):
        ips = (one.mapping.host_ip, other.mapping.host_ip)
        if mine and theirs and (ips[0] == ips[1] or any(is_wildcard(ip) for ip in ips)):
            return True
    return False


def steps(history: Iterable[Event]) -> list[list[Event]]:
    return [[event] for event in history]


def at_once(history: Iterable[Event]) -> list[list[Event]]:
    return [list(history)]


both_paces = pytest.mark.parametrize("pace", [steps, at_once])


@both_paces
@given(history=events(exact=False), host=hosts())
def test_no_host_port_has_two_owners(
    pace: Callable[[list[Event]], list[list[Event]]], history: list[Event], host: Host
):
    """After every pass no two active bindings want one socket, and each has a port that was asked for."""
    ledger = Ledger(host)
    for batch in pace(history):
        for event in batch:
            apply(ledger, event)
        ledger.settle()
        found = [b for each in everything(ledger).values() for b in each]
        active = [b for b in found if b.state is ACTIVE]
        assert [pair for pair in itertools.combinations(active, 2) if overlap(*pair)] == []
        for binding in found:
            mapping, port = binding.mapping, binding.host_port
            low, high = mapping.host_port_pool or host.automatic
            if mapping.host_port is not None:
                assert port == mapping.host_port
            elif binding.state is ACTIVE:
                assert port is not None
                assert low <= port <= high
            assert (binding.state is ACTIVE) == (binding.reason == "")
            assert binding.state is not ACTIVE or binding.ipv4 or binding.ipv6


@both_paces
@given(history=events(exact=False), host=hosts())
def test_the_changes_tell_everything(
    pace: Callable[[list[Event]], list[list[Event]]], history: list[Event], host: Host
):
    """Whoever replays the changes has the bindings, and each change starts from what was there."""
    ledger = Ledger(host)
    replayed: dict[tuple[Key, object], Binding] = {}
    for batch in pace(history):
        for event in batch:
            apply(ledger, event)
        for change in ledger.settle():
            known = change.old or change.new
            assert known is not None
            name = (known.owner, known.mapping)
            assert change.old != change.new
            assert replayed.pop(name, None) == change.old
            if change.new is not None:
                replayed[name] = change.new
        assert replayed == {(b.owner, b.mapping): b for each in everything(ledger).values() for b in each}


@given(history=events(exact=False), host=hosts())
def test_applying_twice_is_applying_once(history: list[Event], host: Host):
    """The same facts again change nothing, however often they are told."""
    ledger = Ledger(host)
    for event in history:
        apply(ledger, event)
    ledger.settle()
    before = everything(ledger)
    assert ledger.settle() == []
    for workload in last_words(history).values():
        ledger.put(workload)
    ledger.set_host(host)
    assert ledger.settle() == []
    assert everything(ledger) == before


@given(data=st.data(), history=events(exact=True), host=hosts().map(lambda h: Host(addresses=h.addresses)))
def test_the_order_of_events_does_not_change_the_outcome(data: st.DataObject, history: list[Event], host: Host):
    """Exact requests: the last word of each container decides, in whatever order the containers were heard."""
    final = last_words(history)
    step_by_step = Ledger(host)
    for event in history:
        apply(step_by_step, event)
        step_by_step.settle()
    shuffled = data.draw(st.permutations(list(final.values())))
    from_scratch = settled(*shuffled, host=host)
    assert everything(step_by_step) == everything(from_scratch)
    assert decisions(step_by_step) == decisions(settled(*final.values(), host=host))


@given(history=events(exact=True), host=hosts().map(lambda h: Host(addresses=h.addresses)))
def test_exact_requests_are_served_in_the_order_of_asking(history: list[Event], host: Host):
    """Written the slow way: each request in the order of asking has its port unless an earlier one overlaps."""
    ledger = Ledger(host)
    for event in history:
        apply(ledger, event)
        ledger.settle()
    found = [b for each in everything(ledger).values() for b in each if b.state is not REFUSED]
    final = last_words(history)
    found.sort(key=lambda b: (final[b.owner].rank_of(b.mapping), b.owner))
    winners: list[Binding] = []
    for binding in found:
        free = not any(overlap(binding, winner) for winner in winners)
        assert (binding.state is ACTIVE) == free
        if free:
            winners.append(binding)


@given(history=events(exact=False), host=hosts())
def test_a_new_writer_keeps_what_is_served(history: list[Event], host: Host):
    """With the incumbents read back from the kernel every exact mapping that was served is served again."""
    ledger = Ledger(host)
    for event in history:
        apply(ledger, event)
    ledger.settle()
    served = [b for each in everything(ledger).values() for b in each if b.state is ACTIVE]
    incumbents: dict[Incumbent, set[int]] = {}
    for b in served:
        host_ip = None if is_wildcard(b.mapping.host_ip) else b.mapping.host_ip
        incumbent = Incumbent(b.owner, b.mapping.protocol, host_ip, b.mapping.container_port)
        incumbents.setdefault(incumbent, set()).add(b.host_port or 0)
    again = settled(*last_words(history).values(), host=host, incumbents=incumbents)
    active = {(b.owner, b.mapping) for each in everything(again).values() for b in each if b.state is ACTIVE}
    assert {(b.owner, b.mapping) for b in served if b.mapping.host_port is not None} <= active


@given(history=events(exact=False), host=hosts())
def test_nobody_waits_for_a_port_that_is_free(history: list[Event], host: Host):
    """A pool or automatic request waits only when every port of its range is taken, reserved or listened on."""
    ledger = Ledger(host)
    for event in history:
        apply(ledger, event)
        ledger.settle()
    found = [b for each in everything(ledger).values() for b in each]
    for binding in found:
        mapping = binding.mapping
        if binding.state is not WAITING or mapping.host_port is not None:
            continue
        group = [
            b
            for b in found
            if (b.owner, b.mapping.host_ip, b.mapping.container_port)
            == (binding.owner, mapping.host_ip, mapping.container_port)
            and b.host_port is None
            and b.mapping.host_port_pool == mapping.host_port_pool
        ]
        if mapping.host_port_pool:
            group = [binding]
        low, high = mapping.host_port_pool or host.automatic
        reserved = frozenset() if mapping.host_port_pool else host.reserved
        for port in set(range(low, high + 1)) - reserved:
            assert any(taken(b, port, found, host) for b in group)


def taken(binding: Binding, port: int, found: list[Binding], host: Host) -> bool:
    candidate = Binding(
        owner=binding.owner,
        mapping=binding.mapping,
        host_port=port,
        state=ACTIVE,
        ipv4=binding.ipv4,
        ipv6=binding.ipv6,
    )
    # A port that somebody waits for counts as taken: the one who waits came first.
    if any(overlap(candidate, b) for b in found if b.host_port is not None):
        return True
    ip = binding.mapping.host_ip
    return any(
        (each.protocol, each.port) == (binding.mapping.protocol, port)
        and binding.ipv4 is not None
        and (is_wildcard(ip) or is_wildcard(each.address) or ip == each.address)
        for each in host.listeners
    )


def test_a_change_has_two_sides():
    """The first pass makes everything new, the last one takes everything away."""
    ledger = Ledger()
    ledger.put(container("a", "8080:80"))
    (change,) = ledger.settle()
    assert change == Change(None, ledger.bindings(key("a"))[0])
    ledger.remove(key("a"))
    assert ledger.settle() == [Change(change.new, None)]
    assert ledger.owners() == ()


def test_ten_thousand_ports_are_given_out_quickly():
    """A long range costs time in proportion to its length: no pass over all for each."""
    ledger = settled(container("a", "20000-29999:20000-29999", 1))
    assert {b.state for b in ledger.bindings(key("a"))} == {ACTIVE}
    ledger.put(container("b", "8080:80", 2))
    assert len(ledger.settle()) == 1


def test_two_ports_for_one_container_port_both_survive_a_new_writer():
    """A pool keeps its number beside an exact port for the same container port."""
    incumbents = {Incumbent(key("a"), Protocol.TCP, None, 80): {8002, 9000}}
    again = settled(container("a", "9000:80 8000-8010:80"), incumbents=incumbents)
    assert [b.host_port for b in again.bindings(key("a"))] == [9000, 8002]


def test_thousands_of_ports_of_the_host_s_choice_are_given_out_quickly():
    """On one host IP, or from pools that begin anywhere: nobody walks over the ports of those before him."""
    pools = " ".join(f"{20000 + number % 7}-39999:{number + 1}" for number in range(10000))
    for specs in ("192.0.2.1::1-20000", pools):
        ledger = settled(container("a", specs))
        found = ledger.bindings(key("a"))
        assert {b.state for b in found} == {ACTIVE}
        assert len({b.host_port for b in found}) == len(found) >= 10000


@given(
    searches=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), max_size=30),
    occupied=st.sets(st.integers(1, 20)),
)
def test_a_vacancy_is_the_first_port_that_is_free(searches: list[tuple[int, int]], occupied: set[int]):
    """Written the slow way: the first of its span that is not occupied and was not found before."""
    vacancies, found = Vacancies(), set[int]()
    for begin, length in searches:
        span = range(begin, begin + length)
        expected = next((port for port in span if port not in occupied | found), None)
        assert vacancies.find([(begin, begin + length - 1)], lambda port: port not in occupied) == expected
        found |= {expected} if expected else set()


# ------------------------------------------------------------------------------------- what others translate


def pod(name: str, specs: str, created_at: int = 0, *host_ports: int, endpoint: Endpoint | None = BOTH) -> Workload:
    held = tuple(
        Listener(Protocol.TCP, port, IPv4Address(0), (4, 6), f"the hostPort of pod shop/{name}", translated=True)
        for port in host_ports
    )
    asked = container(name, specs, created_at, endpoint)
    return replace(asked, pod=Pod(namespace="shop", name=name), host_ports=held)


def test_a_host_port_is_not_given_out():
    """Neither to another container nor to the pod itself, whoever came first; another protocol is free."""
    waits = "8080/tcp is translated by the hostPort of pod shop/p"
    ledger = settled(container("old", "8080:80"), pod("p", "8080:80", 1, 8080), container("udp", "8080:80/udp"))
    assert [state(ledger, name) for name in ("old", "p", "udp")] == [WAITING, WAITING, ACTIVE]
    assert (reason(ledger, "old"), reason(ledger, "p")) == (waits, waits)


def test_a_host_port_that_comes_takes_its_port_and_gives_it_back():
    """A mapping that was served waits, one of a pool moves on; the end of the pod, or of its task, undoes it."""
    for gone in (pod("p", "", 2, 8080, endpoint=None), None):
        ledger = settled(container("exact", "8080:80"), container("pool", "8081-8082:80"))
        ledger.put(pod("p", "", 2, 8080, 8081))
        assert {(c.new.owner.id, c.new.state) for c in merged(ledger.settle()) if c.new} == {
            ("exact", WAITING),
            ("pool", ACTIVE),
        }
        assert outcome(ledger, "pool") == [(8082, ACTIVE)]
        ledger.put(pod("p", "", 2, 8080, 8081))
        assert ledger.settle() == []
        if gone:
            ledger.put(gone)
        else:
            ledger.remove(key("p"))
        assert [c.new and c.new.owner.id for c in ledger.settle()] == ["exact"]
        assert outcome(ledger, "exact") == [(8080, ACTIVE)]


def test_incumbents_that_share_a_number():
    """A writer that starts anew leaves an exact port to who had it, if a floating request had another one too."""
    incumbents = {
        Incumbent(key("a"), Protocol.TCP, None, 80): {40000, 40001},
        Incumbent(key("b"), Protocol.TCP, None, 80): {40000},
    }
    ledger = settled(
        container("a", "80 0.0.0.0::80", 1), container("b", "40000:80", 2, ONLY6), incumbents=incumbents
    )
    assert outcome(ledger, "b") == [(40000, ACTIVE)]
    assert outcome(ledger, "a")[0] == (40001, ACTIVE)


def test_an_incumbent_gives_way_to_a_host_port():
    """Also what the kernel serves already: of two translations nobody promises which one is heeded."""
    incumbent = Incumbent(key("a"), Protocol.TCP, None, 80)
    ledger = settled(container("a", "8080:80"), pod("p", "", 1, 8080), incumbents={incumbent: {8080}})
    assert state(ledger, "a") is WAITING


def test_a_pod_is_named_to_others_by_its_own_name():
    """And carried by its bindings."""
    ledger = settled(pod("first", "8080:80"), container("second", "8080:80", 1))
    assert reason(ledger, "second") == "8080/tcp is held by pod shop/first"
    assert [b.pod for b in ledger.bindings(key("first"))] == [Pod(namespace="shop", name="first")]


# ------------------------------------------------------------------------------------------- the kernel's word


def test_a_port_that_could_not_be_bound_is_not_given_out():
    """What `bind` refused waits with the holder's name, and is tried again when listeners are read again."""
    ledger = settled(container("a", "8080:80"))
    ledger.take(Listener(Protocol.TCP, 8080, ip_address("192.0.2.1"), (4,), "redis-server (pid 811)"))
    (change,) = ledger.settle()
    assert change.old is not None
    assert change.new is not None
    assert (change.old.state, change.new.state) == (ACTIVE, WAITING)
    assert reason(ledger, "a") == "192.0.2.1:8080/tcp is held by redis-server (pid 811)"
    ledger.set_host(Host())
    assert [c.new and c.new.state for c in ledger.settle()] == [ACTIVE]


def test_what_could_not_be_bound_is_tried_whenever_listeners_are_read():
    """No list shows such a holder, and none shows that it has gone: `bind` is asked again."""
    ledger, binds = settled(container("a", "9090:90")), Binds(8080)
    ledger.put(container("b", "8080:80"))
    settle(ledger, binds)
    ledger.set_listeners(())
    assert settle(ledger, binds) == []
    assert state(ledger, "b") is WAITING
    binds.taken = ()
    ledger.set_listeners(())
    assert [c.new and c.new.state for c in settle(ledger, binds)] == [ACTIVE]


def test_a_pool_goes_on_where_a_port_could_not_be_bound():
    """Each refusal moves the request by one, until a port is left or none."""
    ledger = settled(container("a", "8080-8082:80"))
    for port, expected in ((8080, (8081, ACTIVE)), (8081, (8082, ACTIVE)), (8082, (None, WAITING))):
        ledger.take(Listener(Protocol.TCP, port, ip_address("::"), (4, 6)))
        ledger.settle()
        assert outcome(ledger, "a") == [expected]
    assert reason(ledger, "a") == ALL_ALLOCATED


def test_who_is_in_the_way_is_told_before_the_decision():
    """Only listeners on ports that somebody asks for and does not have are worth a name."""
    ledger = settled(container("a", "8080:80"))
    ledger.put(container("b", "192.0.2.1:9090:90"))
    listeners = [
        Listener(Protocol.TCP, port, ip_address(address), (4,))
        for port, address in ((8080, "::1"), (9090, "192.0.2.1"), (9090, "127.0.0.1"), (22, "127.0.0.1"))
    ]
    assert ledger.contested(listeners) == [listeners[1]]


class Binds:
    """A reservation on a host where some ports cannot be bound."""

    def __init__(self, *taken: int) -> None:
        self.taken = taken
        self.held: set[tuple[Key, int | None]] = set()

    def update(self, changes: Iterable[Change]) -> list[Listener]:
        refused = []
        for old, new in changes:
            if old is not None and old.state is ACTIVE:
                self.held.discard((old.owner, old.host_port))
            if new is not None and new.state is ACTIVE:
                if new.host_port in self.taken:
                    refused.append(Listener(Protocol.TCP, new.host_port, ip_address("::"), (4, 6)))
                else:
                    self.held.add((new.owner, new.host_port))
        return refused


def settle(ledger: Ledger, binds: Binds) -> list[Change]:
    return Claims(binds).settle(ledger)  # type: ignore[arg-type]


def test_what_is_settled_is_what_is_held():
    """The changes that come out lead from the state before to the state after, whatever was tried between."""
    ledger, binds = Ledger(), Binds(8080, 8081, 8090)
    for name, specs in (("a", "8080-8089:80"), ("b", "8090:80"), ("c", "8091:80")):
        ledger.put(container(name, specs))
    changes = settle(ledger, binds)
    assert {(c.old, c.new.host_port, c.new.state) for c in changes if c.new} == {
        (None, 8082, ACTIVE),
        (None, 8090, WAITING),
        (None, 8091, ACTIVE),
    }
    assert binds.held == {(key("a"), 8082), (key("c"), 8091)}
    assert settle(ledger, binds) == []


def test_an_incumbent_keeps_its_port_whoever_has_bound_it():
    """What the kernel serves already is not lost to a program that bound the port while no watcher ran."""
    incumbent = Incumbent(key("a"), Protocol.TCP, None, 80)
    ledger = Ledger(None, {incumbent: {8080}})
    ledger.put(container("a", "8080:80"))
    (change,) = settle(ledger, Binds(8080))
    assert change.new is not None
    assert change.new.state is ACTIVE
