"""Bindings and networks to an nftables table.

Theory of operation, along the path of a packet:

1. *Before anything else* (`loopback`, raw priority) whatever claims to come from outside to 127.0.0.0/8 is
   dropped. Publishing on 127.0.0.1 needs `route_localnet`, and without this rule a neighbour on the same
   segment could reach ports that were published for this host alone (the class of CVE-2020-8558).
2. *On the way in* (`prerouting`, and `output` for the host's own programs) a packet to an address of this host
   is looked up by host IP, protocol and port; a hit is translated to the container. A published port is one
   element of a map, so a new connection costs the same with one mapping and with 50,000. The connection gets a
   bit of the conntrack mark, by which later chains know that we translated it.
3. *On the way through* (`forward`) what we translated passes. Anything else towards one of our own bridges
   must belong to a connection that exists or come from the same bridge: ports that were not published are closed
   to outsiders, whatever the policy of other tables. Other people's networks get the accept and never a drop.
   Before that, what would enter or leave an *internal* network is dropped; and an *isolated* network's containers
   reach each other by published ports alone.
4. *On the way out* (`postrouting`) the source is rewritten in three cases only: the answer would otherwise
   not come back through this host (a container that reaches itself or a sibling, the host's own programs), or
   a container of ours talks to the outside. A remote client's address is always kept.

Data in, data out: no I/O here.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ctrport.firewall.table import Chain, Element, Elements, Rule, Set, Table
from ctrport.model.bindings import IPV6_LOOPBACK, Incumbent, State, is_wildcard
from ctrport.model.mark import DEFAULT_MARK
from ctrport.model.ports import Protocol
from ctrport.model.workload import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.model.bindings import Binding

FAMILY = "inet"
TABLE = "ctrport"
ADDRESS = f"{FAMILY} {TABLE}"
COMMENT_LIMIT = 128  # bytes, NFTNL_UDATA_COMMENT_MAXLEN of libnftnl

PUBLISHED4, PUBLISHED6 = "published4", "published6"
PUBLISHED_ON4, PUBLISHED_ON6 = "published_on4", "published_on6"
BRIDGES, SAME_LINK = "bridges", "same_link"
INTERNAL, ISOLATED = "internal", "isolated"

IPV4_MAPS, IPV6_MAPS = (PUBLISHED4, PUBLISHED_ON4), (PUBLISHED6, PUBLISHED_ON6)
MAPS = (*IPV4_MAPS, *IPV6_MAPS)

SETS = (
    Set(
        name=PUBLISHED4,
        key_type="inet_proto . inet_service",
        value_type="ipv4_addr . inet_service",
        counter=True,
    ),
    Set(
        name=PUBLISHED6,
        key_type="inet_proto . inet_service",
        value_type="ipv6_addr . inet_service",
        counter=True,
    ),
    Set(
        name=PUBLISHED_ON4,
        key_type="ipv4_addr . inet_proto . inet_service",
        value_type="ipv4_addr . inet_service",
        counter=True,
    ),
    Set(
        name=PUBLISHED_ON6,
        key_type="ipv6_addr . inet_proto . inet_service",
        value_type="ipv6_addr . inet_service",
        counter=True,
    ),
    Set(name=BRIDGES, key_type="ifname"),
    Set(name=SAME_LINK, key_type="ifname . ifname"),
    Set(name=INTERNAL, key_type="ifname"),
    Set(name=ISOLATED, key_type="ifname"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Interfaces of the host that the rules speak of."""

    bridges: frozenset[str] = frozenset()  # of our own networks: closed to outsiders, masqueraded
    endpoints: frozenset[str] = frozenset()  # towards published containers of whatever network
    internal: frozenset[str] = frozenset()  # those bridges that nothing is forwarded to or from
    isolated: frozenset[str] = frozenset()  # those bridges whose containers are kept from each other

    @property
    def every(self) -> frozenset[str]:
        """All interfaces that packets of ours take towards containers."""
        return self.bridges | self.endpoints

    def elements(self) -> Elements:
        """Give the elements of the interface sets."""
        both = sorted(self.bridges | self.endpoints)
        single = {BRIDGES: self.bridges, INTERNAL: self.internal, ISOLATED: self.isolated}
        return {
            **{of: {e.key: e for e in (Element(_quote(n)) for n in sorted(ns))} for of, ns in single.items()},
            SAME_LINK: {e.key: e for e in (Element(f"{_quote(n)} . {_quote(n)}") for n in both)},
        }


def binding_elements(binding: Binding | None) -> Iterator[tuple[str, Element]]:
    """Give the map elements that serve a binding: one a family, none unless it is active.

    None for [::1] either: what comes from there is relayed.
    """
    if binding is None or binding.state is not State.ACTIVE or binding.mapping.host_ip == IPV6_LOOPBACK:
        return
    mapping = binding.mapping
    comment = comment_for(binding.owner)
    service = f"{mapping.protocol} . {binding.host_port}"
    for address, wildcard_map, host_ip_map in (
        (binding.ipv4, PUBLISHED4, PUBLISHED_ON4),
        (binding.ipv6, PUBLISHED6, PUBLISHED_ON6),
    ):
        if address is None:
            continue
        value = f"{address} . {mapping.container_port}"
        if is_wildcard(mapping.host_ip):
            yield wildcard_map, Element(service, value, comment)
        else:
            yield host_ip_map, Element(f"{mapping.host_ip} . {service}", value, comment)


def build(bindings: Iterable[Binding], links: Links, *, mark: int = DEFAULT_MARK) -> Table:
    """Give the whole table."""
    elements: Elements = {s.name: {} for s in SETS} | links.elements()
    for binding in bindings:
        for name, element in binding_elements(binding):
            elements[name][element.key] = element
    return whole(elements, mark)


def whole(elements: Elements, mark: int) -> Table:
    """Give the whole table with these elements."""
    return Table(family=FAMILY, name=TABLE, sets=SETS, chains=_chains(mark), elements=elements)


def incumbents(elements: Elements) -> Iterator[tuple[Incumbent, int]]:
    """Give the mappings that elements of our maps stand for: the way back from `binding_elements`.

    Elements that say nothing of the kind, because somebody else wrote them, are passed over.
    """
    for name in MAPS:
        for element in elements.get(name, {}).values():
            *host_ip, protocol, port = element.key.split(" . ")
            namespace, _, container = element.comment.partition("/")
            target = element.value.rpartition(" . ")[2]
            if protocol in set(Protocol) and port.isdecimal() and target.isdecimal():
                incumbent = Incumbent(
                    owner=Key(namespace, container),
                    protocol=Protocol(protocol),
                    host_ip=ip_address(host_ip[0]) if host_ip else None,
                    container_port=int(target),
                )
                yield incumbent, int(port)


def carry_over(have: Elements, want: Elements, owners: Iterable[Key]) -> None:
    """Add to what is wanted the mappings that the kernel has of some containers, unless their ports are taken."""
    comments = {comment_for(owner) for owner in owners}
    for name in MAPS if comments else ():
        for key, element in have.get(name, {}).items():
            if element.comment in comments:
                want[name].setdefault(key, element)


def comment_for(owner: Key) -> str:
    """Give the comment that names a container on its elements.

    Nothing but containerd's own alphabet for names passes, so no name can end the quoted string; a name
    longer than nft takes is cut and made unique by a digest.
    """
    text = str(owner)
    clean = re.sub(r"[^A-Za-z0-9_.\-/]", "?", text)
    if clean == text and len(text) <= COMMENT_LIMIT:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{clean[: COMMENT_LIMIT - 17]}~{digest}"


def can_name(interface: str) -> bool:
    """Whether nft takes an interface's name in quotes: printable ASCII, no quote, slash or backslash, no wildcard.

    At most 15 characters: IFNAMSIZ - 1.
    """
    return re.fullmatch(r"[!#-)+-.0-\[\]-~]{1,15}", interface) is not None


def _quote(interface: str) -> str:
    if not can_name(interface):
        raise ValueError(f"not an interface name for nftables: {interface!r}")
    return f'"{interface}"'


def _chains(mark: int) -> tuple[Chain, ...]:
    ours = f"ct mark & {mark:#x} == {mark:#x} ct status dnat"
    service = "meta l4proto . th dport"
    return (
        Chain(
            name="loopback",
            hook="type filter hook prerouting priority raw; policy accept;",
            rules=(
                Rule('iifname != "lo" ip daddr 127.0.0.0/8 counter drop', "IPv4 loopback from outside"),
                Rule('iifname != "lo" ip6 daddr ::1 counter drop', "IPv6 loopback from outside"),
            ),
        ),
        Chain(
            name="prerouting",
            hook="type nat hook prerouting priority dstnat; policy accept;",
            rules=(Rule("fib daddr type local goto publish", "to this host, from outside or a container"),),
        ),
        Chain(
            name="output",
            hook="type nat hook output priority -100; policy accept;",  # 1.0.6 refuses the name dstnat here
            rules=(Rule("fib daddr type local goto publish", "to this host, from its own programs"),),
        ),
        Chain(
            name="publish",
            rules=(
                Rule("ip6 daddr ::1 return", "no packet from ::1 can leave the host"),
                Rule("meta l4proto != { tcp, udp, sctp } return", "protocols with ports only"),
                Rule(f"ct mark set ct mark | {mark:#x}", "mark what is translated below"),
                Rule(f"dnat ip addr . port to ip daddr . {service} map @{PUBLISHED_ON4}", "on one IPv4 address"),
                Rule(
                    f"dnat ip6 addr . port to ip6 daddr . {service} map @{PUBLISHED_ON6}",
                    "on one IPv6 address",
                ),
                Rule(
                    f"meta nfproto ipv4 dnat ip addr . port to {service} map @{PUBLISHED4}",
                    "on every IPv4 address",
                ),
                Rule(
                    f"meta nfproto ipv6 dnat ip6 addr . port to {service} map @{PUBLISHED6}",
                    "on every IPv6 address",
                ),
                Rule(f"ct mark set ct mark & {mark ^ 0xFFFFFFFF:#x}", "not published: take the mark back"),
            ),
        ),
        Chain(
            name="forward",
            hook="type filter hook forward priority filter; policy accept;",
            rules=(
                Rule(
                    f"iifname @{INTERNAL} iifname . oifname != @{SAME_LINK} counter drop",
                    "out of an internal network",
                ),
                Rule(
                    f"oifname @{INTERNAL} iifname . oifname != @{SAME_LINK} counter drop",
                    "into an internal network",
                ),
                Rule(f"{ours} accept", "published port"),
                Rule(f"oifname @{BRIDGES} goto guard", "to a network of ours"),
            ),
        ),
        Chain(
            name="guard",
            rules=(
                Rule("ct state established,related accept", "answers"),
                Rule(
                    f"oifname @{ISOLATED} iifname . oifname @{SAME_LINK} counter drop",
                    "between containers of an isolated network",
                ),
                Rule(f"iifname . oifname @{SAME_LINK} accept", "between containers of one network"),
                Rule("counter drop", "unpublished port"),
            ),
        ),
        Chain(
            name="postrouting",
            hook="type nat hook postrouting priority srcnat; policy accept;",
            rules=(
                Rule(f"{ours} goto return_path", "what was translated above"),
                Rule(f"iifname @{BRIDGES} oifname != @{BRIDGES} masquerade", "containers to the outside"),
            ),
        ),
        Chain(
            name="return_path",
            rules=(
                Rule(f"iifname . oifname @{SAME_LINK} masquerade", "from a container to itself or a sibling"),
                # With br_netfilter such a packet is bridged, and postrouting is not told where it came from.
                Rule("meta iif 0 masquerade", "from a container to itself or a sibling, bridged"),
                Rule("fib saddr type local masquerade", "from the host itself"),
            ),
        ),
    )
