"""Bindings to elements and back; names that cannot become nft syntax."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ctrport.firewall import ruleset
from ctrport.firewall.ruleset import COMMENT_LIMIT, Links, binding_elements, build, comment_for, incumbents
from ctrport.firewall.table import Element
from ctrport.model.bindings import Binding, Incumbent, State, is_wildcard
from ctrport.model.ledger import Ledger
from ctrport.model.ports import PortMapping, Protocol
from ctrport.model.workload import Key, Workload
from strategies import hostile_text, keys, ports, workloads

WEB = Key("default", "web")


def binding(host_ip: str | None = None, state: State = State.ACTIVE, **changes: object) -> Binding:
    ip = ip_address(host_ip) if host_ip else None
    values = {
        "owner": WEB,
        "mapping": PortMapping(container_port=80, host_ip=ip, host_port=8080),
        "host_port": 8080,
        "state": state,
        "ipv4": IPv4Address("10.0.0.2"),
        "ipv6": IPv6Address("fd00::2"),
    }
    return Binding(**{**values, **changes})  # type: ignore[arg-type]


FOUR = Element("tcp . 8080", "10.0.0.2 . 80", "default/web")
SIX = Element("tcp . 8080", "fd00::2 . 80", "default/web")


@pytest.mark.parametrize(
    ("one", "elements"),
    [
        (binding(), [("published4", FOUR), ("published6", SIX)]),
        (binding(ipv6=None), [("published4", FOUR)]),
        (binding(ipv4=None), [("published6", SIX)]),
        (binding("0.0.0.0", ipv6=None), [("published4", FOUR)]),  # noqa: S104 - a wildcard
        (binding("::", ipv4=None), [("published6", SIX)]),
        (
            binding("127.0.0.1", ipv6=None),
            [("published_on4", FOUR._replace(key="127.0.0.1 . tcp . 8080"))],
        ),
        (
            binding("2001:db8::1", ipv4=None),
            [("published_on6", SIX._replace(key="2001:db8::1 . tcp . 8080"))],
        ),
        (binding(state=State.WAITING), []),
        (binding(state=State.REFUSED), []),
        (None, []),
    ],
)
def test_the_elements_of_a_binding(one: Binding | None, elements: list[tuple[str, Element]]):
    """One a family, in the map for every address or for one, and none unless it is active."""
    assert list(binding_elements(one)) == elements


def test_interfaces():
    """Bridges of ours are closed to outsiders; everything towards containers can be turned back on."""
    table = build([], Links(bridges=frozenset({"ctrport0"}), endpoints=frozenset({"cni0", "ctrport0"})))
    assert list(table.elements["bridges"]) == ['"ctrport0"']
    assert list(table.elements["same_link"]) == ['"cni0" . "cni0"', '"ctrport0" . "ctrport0"']


@pytest.mark.parametrize("name", ["", 'a"b', "a b", "a\\b", "a\nb", "a/b", "é", "sixteen-letters0", "*"])
def test_an_odd_interface_name_is_an_error(name: str):
    """What is not an interface's name does not become nft syntax."""
    with pytest.raises(ValueError, match="not an interface name"):
        build([], Links(bridges=frozenset({name})))


def test_the_mark_is_one_bit_in_every_rule():
    """Another bit changes the rules that set, test and take back the mark, and no other."""
    usual, other = build([], Links()), build([], Links(), mark=0x4)
    assert usual.listing() == other.listing()
    text = other.declaration()
    assert "ct mark set ct mark | 0x4 " in text
    assert "ct mark set ct mark & 0xfffffffb " in text
    assert "ct mark & 0x4 == 0x4 ct status dnat accept" in text
    assert "0x10000" not in text


def test_rules_can_be_told_apart_by_their_comments():
    """In each chain every comment is there once: the kernel's rules are compared by them."""
    for chain in build([], Links()).chains:
        comments = [rule.comment for rule in chain.rules]
        assert len(set(comments)) == len(comments)
        assert all(re.fullmatch(r"[A-Za-z0-9 ,:]{3,60}", comment) for comment in comments)


@given(namespace=hostile_text(), name=hostile_text())
@example("default", 'web" : 10.0.0.9 . 22, tcp . 22 comment "')
@example("default", "web\\")
@example("default", "n" * 121)
def test_no_name_can_become_syntax(namespace: str, name: str):
    """Whatever a container is called: within nft's length, and nothing in it ends the string."""
    comment = comment_for(Key(namespace, name))
    assert re.fullmatch(r"[A-Za-z0-9_.\-/?~]+", comment)
    assert len(comment.encode()) <= COMMENT_LIMIT


@given(one=keys(hostile_text()), other=keys(hostile_text()))
def test_no_two_containers_have_one_comment(one: Key, other: Key):
    """Containers of different names have different comments, also where the names had to be cut."""
    assume(one != other)
    assert comment_for(one) != comment_for(other)


@pytest.mark.parametrize("name", ["web", "a.b-c_d", "n" * (COMMENT_LIMIT - len("default/"))])
def test_usual_names_are_as_they_are(name: str):
    """The alphabet of containerd passes unchanged: namespace, slash, id."""
    assert comment_for(Key("default", name)) == f"default/{name}"


def test_names_that_differ_at_the_end():
    """Two long names with the same beginning are told apart."""
    long = "n" * 200
    first, second = comment_for(Key("default", f"{long}1")), comment_for(Key("default", f"{long}2"))
    assert first[:-16] == second[:-16]
    assert first != second


def bindings(wanted: list[Workload]) -> list[Binding]:
    ledger = Ledger()
    for workload in wanted:
        ledger.put(workload)
    ledger.settle()
    return [b for owner in ledger.owners() for b in ledger.bindings(owner)]


@given(wanted=st.lists(workloads(), max_size=5))
def test_incumbents_are_the_way_back(wanted: list[Workload]):
    """The elements of a table name owner, protocol, host IP, container port and host port of all that is active."""
    made = bindings(wanted)
    expected = {
        (
            Incumbent(
                owner=b.owner,
                protocol=b.mapping.protocol,
                host_ip=None if is_wildcard(b.mapping.host_ip) else b.mapping.host_ip,
                container_port=b.mapping.container_port,
            ),
            b.host_port,
        )
        for b in made
        if b.state is State.ACTIVE
    }
    assert set(incumbents(build(made, Links()).elements)) == expected


@given(wanted=st.lists(workloads(), max_size=5))
def test_every_active_binding_is_in_the_table(wanted: list[Workload]):
    """No element takes another's key: as many elements as active bindings have families."""
    made = bindings(wanted)
    count = sum((b.ipv4 is not None) + (b.ipv6 is not None) for b in made if b.state is State.ACTIVE)
    elements = build(made, Links()).elements
    assert sum(len(elements[name]) for name in (*ruleset.IPV4_MAPS, *ruleset.IPV6_MAPS)) == count


@pytest.mark.parametrize(
    "element",
    [
        Element("icmp . 8080", "10.0.0.2 . 80", "default/web"),
        Element("tcp . http", "10.0.0.2 . 80", "default/web"),
        Element("tcp . 8080", "10.0.0.2 . http", "default/web"),
        Element("tcp . 8080", "10.0.0.2", "default/web"),
    ],
)
def test_what_somebody_else_wrote_is_passed_over(element: Element):
    """An element that we would not write names no incumbent."""
    assert list(incumbents({"published4": {element.key: element}})) == []


@given(port=ports())
def test_an_element_without_a_comment_has_no_owner_of_ours(port: int):
    """It names a container without a name, which no container is."""
    element = Element(f"udp . {port}", "10.0.0.2 . 53")
    assert list(incumbents({"published4": {element.key: element}})) == [
        (Incumbent(Key("", ""), Protocol.UDP, None, 53), port)
    ]
