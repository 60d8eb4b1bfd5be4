"""What is read of the table by netlink is what `nft` lists of it."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.firewall import ruleset
from ctrport.firewall.nft import LibNft
from ctrport.firewall.table import Counts, Element, Elements, Listing
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
PROTOCOLS = ("tcp", "udp", "sctp")
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


def listed(lab: Lab) -> Listing:
    """Give the table as `nft --json` has it."""
    chains: dict[str, tuple[str, ...]] = {}
    elements: Elements = {}
    counts: Counts = {}
    for item in json.loads(lab.host.run("nft", "--json", "list", "table", "inet", "ctrport").stdout)["nftables"]:
        if chain := item.get("chain"):
            policy = chain.get("policy", "accept")
            chains[chain["name"]] = () if policy == "accept" else (f"policy {policy}",)
        elif rule := item.get("rule"):
            chains[rule["chain"]] += (rule.get("comment", ""),)
        elif found := item.get("map") or item.get("set"):
            elements[found["name"]] = {}
            for raw in found.get("elem", ()):
                key, value = raw if isinstance(raw, list) else (raw, {"concat": []})
                extra = key["elem"] if isinstance(key, dict) and "elem" in key else {"val": key}
                element = Element(words(extra["val"]), words(value), extra.get("comment", ""))
                elements[found["name"]][element.key] = element
                if counter := extra.get("counter"):
                    counts[found["name"], element] = counter["packets"], counter["bytes"]
    return Listing(chains=chains, elements=elements, counts=counts)


def words(raw: Any) -> str:
    """Give a key or a value as we spell it."""
    parts = [str(part) for part in (raw["concat"] if isinstance(raw, dict) else [raw])]
    spelled = [str(IPv6Address(part)) if ":" in part else part for part in parts]
    return " . ".join(f'"{part}"' if part[0].isalpha() and part not in PROTOCOLS else part for part in spelled)


def same(lab: Lab, nft: LibNft) -> None:
    """Compare both ways of reading."""
    have, want = nft.listing(), listed(lab)
    assert have is not None
    assert (have.chains, have.elements, have.counts) == (want.chains, want.elements, want.counts)


def test_every_kind_of_element(lab: Lab, nft: LibNft):
    """Addresses, protocols, names, comments of all lengths, and counts."""
    same(lab, nft)
    found = nft.listing()
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
    want, have = listed(lab), nft.listing()
    assert have is not None
    assert have.chains == want.chains
    assert have.elements["published4"].keys() - want.elements["published4"].keys() == {"47 . 9"}
    lab.host.nft("delete element inet ctrport published4 { 47 . 9 }")
    same(lab, nft)


def test_what_is_gone(lab: Lab, nft: LibNft):
    """A table without one of its sets is not whole, and neither is none."""
    lab.host.nft(
        "flush chain inet ctrport forward\nflush chain inet ctrport guard\ndelete set inet ctrport internal"
    )
    assert nft.listing() is None
    lab.host.nft("delete table inet ctrport")
    assert nft.listing() is None


CHANGES = {
    "a rule replaced in place": "replace rule inet ctrport publish handle {handle} return comment {comment}",
    "a rule deleted": "delete rule inet ctrport publish handle {handle}",
    "a rule added": "add rule inet ctrport forward counter",
    "another policy": "add chain inet ctrport forward {{ policy drop; }}",
    "a chain more": "add chain inet ctrport more",
    "the table switched off": "add table inet ctrport {{ flags dormant; }}",
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_rules_changes_the_digest(lab: Lab, nft: LibNft, change: str):
    """Also one that leaves all comments as they were; two readings of the same rules are the same."""
    before = nft.listing(elements=False)
    assert before is not None
    shown = json.loads(lab.host.run("nft", "-a", "--json", "list", "chain", "inet", "ctrport", "publish").stdout)[
        "nftables"
    ]
    rule = next(item["rule"] for item in shown if "rule" in item)
    lab.host.nft(CHANGES[change].format(handle=rule["handle"], comment=f'"{rule["comment"]}"'))
    after = nft.listing(elements=False)
    assert after is not None
    assert after.fingerprint != before.fingerprint


def test_what_counts_does_not_change_the_digest(lab: Lab, nft: LibNft):
    """Counters of rules and of elements go on; elements come and go."""
    lab.host.nft('add rule inet ctrport forward counter comment "x"')
    before = nft.listing(elements=False)
    lab.host.nft("add element inet ctrport bridges { br7 }")
    lab.remote.run("ping", "-c", "1", "-W", "1", "192.0.2.1", check=False)
    after = nft.listing(elements=False)
    assert before is not None
    assert after is not None
    assert after.fingerprint == before.fingerprint
    assert before.elements == {}
