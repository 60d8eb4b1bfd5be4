"""What is read of the table by our own netlink is what libnftables lists of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ctrport.firewall import contents, ruleset
from ctrport.firewall.nft import LibNft
from ctrport.firewall.table import Element, Elements
from lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

ELEMENTS = {
    "published4": [
        Element("tcp . 8080", "198.51.100.2 . 80", "default/web"),
        Element("udp . 65535", "198.51.100.2 . 1", "k8s.io/" + "a" * 121),
        Element("sctp . 1", "198.51.100.255 . 65535"),
    ],
    "published6": [
        Element("tcp . 8080", "2001:db8:a::2 . 80", "default/web"),
        Element("tcp . 8081", "::ffff:198.51.100.2 . 80", "default/web"),
    ],
    "published_on4": [Element("127.0.0.1 . tcp . 256", "198.51.100.2 . 80", "default/web")],
    "published_on6": [Element("2001:db8::1 . udp . 53", "2001:db8:a::2 . 53", "default/web")],
    "bridges": [Element('"ctrport0"'), Element('"a-fifteen.chars"')],
    "same_link": [Element('"ctrport0" . "ctrport0"'), Element('"eth0.100" . "x"')],
}
COUNTED = ("published4", ELEMENTS["published4"][0])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def nft(lab: Lab) -> LibNft:
    """Give a host with a table of every kind of element, of which one has counted."""
    made: Elements = {each.name: {} for each in ruleset.SETS}
    for name, elements in ELEMENTS.items():
        made[name] = {element.key: element for element in elements}
    nft = lab.host.call(LibNft)
    script = ruleset.whole(made, ruleset.DEFAULT_MARK).rebuild({COUNTED: (5, 1 << 40)})
    lab.host.call(lambda: nft.apply(script))
    return nft


def same(lab: Lab, nft: LibNft) -> None:
    """Compare both ways of reading."""
    read, listed = lab.host.call(contents.read), lab.host.call(nft.listing)
    assert read is not None
    assert listed is not None
    assert (read.chains, read.elements, read.counts) == (listed.chains, listed.elements, listed.counts)


def test_every_kind_of_element(lab: Lab, nft: LibNft):
    """Addresses, protocols, names, comments of all lengths, and counts."""
    same(lab, nft)
    found = lab.host.call(contents.read)
    assert found is not None
    assert found.counts[COUNTED] == (5, 1 << 40)


def test_what_others_do(lab: Lab, nft: LibNft):
    """Elements without comment, rules, chains and policies of somebody else's."""
    lab.host.nft(
        "add element inet ctrport published4 { 47 . 9 : 192.0.2.7 . 80 }\n"
        'add rule inet ctrport guard counter comment "x"\n'
        "add rule inet ctrport guard counter\n"
        "add chain inet ctrport more\n"
        "add chain inet ctrport forward { policy drop; }\n"
    )
    listed, read = lab.host.call(nft.listing), lab.host.call(contents.read)
    assert listed is not None
    assert read is not None
    assert read.chains == listed.chains
    assert read.elements["published4"].keys() - listed.elements["published4"].keys() == {"47 . 9"}
    lab.host.nft("delete element inet ctrport published4 { 47 . 9 }")
    same(lab, nft)


def test_what_is_gone(lab: Lab, nft: LibNft):
    """A table without one of its sets is not whole, and neither is none."""
    assert nft
    lab.host.nft(
        "flush chain inet ctrport forward\nflush chain inet ctrport guard\ndelete set inet ctrport internal"
    )
    assert lab.host.call(contents.read) is None
    lab.host.nft("delete table inet ctrport")
    assert lab.host.call(contents.read) is None
