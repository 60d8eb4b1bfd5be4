"""libnftables in this process against the real kernel: what was applied is what is listed."""

from __future__ import annotations

import json
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrport.errors import KernelError
from ctrport.firewall import ruleset
from ctrport.firewall.nft import LibNft
from ctrport.firewall.ruleset import Links
from ctrport.firewall.table import difference
from ctrport.model import ports
from ctrport.model.ledger import Ledger
from ctrport.model.workload import Endpoint, Key, Workload
from ctrport.observe import Drift, drift
from lab import Netns
from strategies import hostile_text, keys, port_mappings, workloads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.firewall.table import Listing, Table
    from ctrport.model.bindings import Binding

LINKS = Links(bridges=frozenset({"ctrport0", "br-1.2@x"}), endpoints=frozenset({"cni0", "cali0123456789a"}))
SPECS = (
    "8080:80 8080:80/udp 8081-8083:81-83/sctp 192.0.2.1:9090:90 127.0.0.1:9091:91 0.0.0.0:9092:92 "
    "[2001:db8::1]:9090:90 [::]:9093:93 [::c000:201]:9094:94 [2001:0:0:1::1]:9095:95/udp"
)
ENDPOINT = Endpoint(ipv4=IPv4Address("198.51.100.2"), ipv6=IPv6Address("2001:db8:a:0:0:b::2"))


@pytest.fixture(scope="module")
def inside() -> Iterator[Netns]:
    """Give a network namespace for this module."""
    with Netns("nft") as made:
        yield made


@pytest.fixture(scope="module")
def nft(inside: Netns) -> LibNft:
    """Give a library context that was made inside, and is used from outside."""
    return inside.call(LibNft)


@pytest.fixture(autouse=True)
def _empty(inside: Netns) -> None:
    inside.nft("flush ruleset")


def bindings(wanted: Iterable[Workload]) -> list[Binding]:
    ledger = Ledger()
    for workload in wanted:
        ledger.put(workload)
    ledger.settle()
    return [b for key in ledger.owners() for b in ledger.bindings(key)]


def table(text: str = SPECS, *, links: Links = LINKS, name: str = "web", mark: int = 0x10000) -> Table:
    mappings, errors = ports.parse_list(text)
    assert not errors
    workload = Workload(key=Key("default", name), created_at=1, requests=mappings, endpoint=ENDPOINT)
    return ruleset.build(bindings([workload]), links, mark=mark)


def test_a_context_belongs_to_the_namespace_that_it_was_made_in(inside: Netns, nft: LibNft):
    """Used by a thread that has not entered the namespace, it changes the namespace that it came from."""
    nft.apply(table().rebuild())
    assert inside.nft("list tables") == "table inet ctrport\n"


def test_no_table_is_none(nft: LibNft):
    """A table that is not there is told from one that is empty."""
    assert nft.listing() is None


@pytest.mark.parametrize("mark", [0x1, 0x10000, 0x80000000])
def test_what_was_applied_is_what_is_listed(nft: LibNft, mark: int):
    """Chains, rules by their comments, and every element with its spelling, value and comment come back."""
    wanted = table(mark=mark)
    nft.apply(wanted.rebuild())
    listing = nft.listing()
    assert listing == wanted.listing()
    assert drift(wanted, listing) == Drift(missing=(), surplus=())


def test_elements_are_spelled_the_same_without_etc_protocols(inside: Netns, nft: LibNft):
    """On a host without netbase nft prints protocols as numbers; our listing names them all the same."""
    wanted = table()
    nft.apply(wanted.rebuild())
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from ctrport.firewall.nft import LibNft\n"
        "print(sorted({e.key.split(' . ')[-2] for m in ('published4', 'published_on6') "
        "for e in LibNft().listing().elements[m].values()}))"
    )
    hide = 'mount --bind /dev/null /etc/protocols && exec "$@"'
    shown = inside.run("unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", code).stdout
    assert shown == "['sctp', 'tcp', 'udp']\n"


def test_a_rebuild_replaces_what_is_there(nft: LibNft):
    """One script turns any earlier table into the new one, and may be applied again."""
    nft.apply(table("8080:80 8443:443").rebuild())
    wanted = table("8080:81")
    nft.apply(wanted.rebuild())
    assert nft.listing() == wanted.listing()
    nft.apply(wanted.rebuild())
    assert nft.listing() == wanted.listing()


def test_other_tables_are_left_alone(inside: Netns, nft: LibNft):
    """A rebuild touches our table only."""
    inside.nft("table ip other { chain c { type filter hook input priority 0; policy accept; counter; }; }")
    before = inside.nft("list table ip other")
    nft.apply(table().rebuild())
    assert inside.nft("list table ip other") == before


def test_a_difference_leads_to_the_same_listing_as_a_rebuild(nft: LibNft):
    """Elements that go, come, and change their value or comment are one script."""
    have, want = table(SPECS), table("8080:99 8084:84 192.0.2.1:9090:91 [::]:9093:93", name="other")
    nft.apply(have.rebuild())
    nft.apply(difference(have.elements, want.elements, want.address).render())
    assert nft.listing() == want.listing()


def test_counters_of_other_elements_outlive_a_change(inside: Netns, nft: LibNft):
    """A change leaves alone what it does not name, with its counts."""
    have, want = table("8080:80"), table("8080:80 8081:81")
    nft.apply(have.rebuild())
    inside.nft("delete element inet ctrport published4 { tcp . 8080 }")
    counted = 'tcp . 8080 counter packets 7 bytes 420 comment "default/web" : 198.51.100.2 . 80'
    inside.nft(f"add element inet ctrport published4 {{ {counted} }}")
    nft.apply(difference(have.elements, want.elements, want.address).render())
    assert nft.listing() == want.listing()
    assert counted in inside.nft("list map inet ctrport published4")


@pytest.mark.parametrize(
    "script",
    [
        (
            "add element inet ctrport published4 { tcp . 9999 : 192.0.2.9 . 1 }\n"
            "delete element inet ctrport published4 { tcp . 7777 }"
        ),
        (
            "delete element inet ctrport published4 { tcp . 8080 }\n"
            "add element inet ctrport published4 { udp . 8080 : 192.0.2.9 . 1 }"
        ),
        "delete table inet ctrport\nadd element inet ctrport published4 { tcp . 1 : 192.0.2.9 . 1 }",
        "flush chain inet ctrport guard\nthis is not nft",
    ],
    ids=["missing key", "another value", "no table any more", "syntax"],
)
def test_a_script_that_fails_changes_nothing(inside: Netns, nft: LibNft, script: str):
    """A line that the kernel or nft refuses undoes the whole script: the listing is the same to the letter."""
    nft.apply(table().rebuild())
    before = inside.nft("list ruleset")
    with pytest.raises(KernelError, match="nftables refused to change the table ctrport: "):
        nft.apply(script)
    assert inside.nft("list ruleset") == before


def test_a_change_to_a_table_that_is_gone_is_an_error(nft: LibNft):
    """Somebody flushed the ruleset: the change does not pass for done."""
    transaction = difference({}, table().elements, ruleset.ADDRESS)
    with pytest.raises(KernelError, match="No such file or directory"):
        nft.apply(transaction.render())


@pytest.mark.parametrize("length", [100, 119, 120, 121, 300])
def test_names_of_any_length_are_carried(nft: LibNft, length: int):
    """A name that is longer than a comment may be is cut, and the kernel takes what is left of it."""
    wanted = table("8080:80", name="n" * length)
    nft.apply(wanted.rebuild())
    assert nft.listing() == wanted.listing()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=st.lists(workloads(owners=keys(hostile_text())), max_size=4),
    new=st.lists(workloads(owners=keys(hostile_text())), max_size=4),
    mark=st.integers(0, 31).map(lambda bit: 1 << bit),
)
def test_every_table_is_accepted_and_lists_back(nft: LibNft, old: list[Workload], new: list[Workload], mark: int):
    """Any mappings of containers with any names make a table that loads, lists back, and can be changed."""
    have, want = ruleset.build(bindings(old), LINKS, mark=mark), ruleset.build(bindings(new), LINKS, mark=mark)
    nft.apply(have.rebuild())
    assert nft.listing() == have.listing()
    if transaction := difference(have.elements, want.elements, want.address):
        nft.apply(transaction.render())
    assert nft.listing() == want.listing()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(workloads(port_mappings(st.integers(1, 4))), max_size=8))
def test_the_kernel_s_listing_names_the_incumbents(nft: LibNft, wanted: list[Workload]):
    """What a writer reads when it starts is what an earlier one had given out."""
    made = ruleset.build(bindings(wanted), LINKS)
    nft.apply(made.rebuild())
    listing = nft.listing()
    assert listing is not None
    assert sorted(map(str, ruleset.incumbents(listing.elements))) == sorted(
        map(str, ruleset.incumbents(made.elements))
    )


def test_thousands_of_elements(nft: LibNft):
    """Ten thousand ports for each family load and list back."""
    wanted = table("20000-29999:20000-29999")
    nft.apply(wanted.rebuild())
    assert nft.listing() == wanted.listing()


# ------------------------------------------------------------------------------------------------------ drift


def test_no_table_is_drift(nft: LibNft):
    """A deleted table is one missing thing."""
    assert drift(table(), nft.listing()) == Drift(missing=("table inet ctrport",), surplus=())


ELEMENT = 'published4: tcp . 8080 comment "default/web" : 198.51.100.2 . 80'
GUARD = (
    "answers",
    "between containers of an isolated network",
    "between containers of one network",
    "unpublished port",
)


@pytest.mark.parametrize(
    ("script", "missing", "surplus"),
    [
        ("delete element inet ctrport published4 { tcp . 8080 }", [ELEMENT], []),
        (
            (
                "delete element inet ctrport published4 { tcp . 8080 }\n"
                "add element inet ctrport published4 { tcp . 8080 : 192.0.2.66 . 80 }"
            ),
            [ELEMENT],
            ["published4: tcp . 8080 : 192.0.2.66 . 80"],
        ),
        (
            "add element inet ctrport published6 { udp . 7 : 2001:db8::66 . 7 }",
            [],
            ["published6: udp . 7 : 2001:db8::66 . 7"],
        ),
        ("delete element inet ctrport bridges { ctrport0 }", ['bridges: "ctrport0"'], []),
        (
            "add element inet ctrport same_link { eth0 . cni0 }",
            [],
            ['same_link: "eth0" . "cni0"'],
        ),
        ("flush chain inet ctrport guard", [f"chain guard: rule {c!r}" for c in GUARD], []),
        (
            'add rule inet ctrport forward counter drop comment "mine"',
            [],
            ["chain forward: rule 'mine'"],
        ),
        ("insert rule inet ctrport guard drop", [], ["chain guard: rule ''"]),
        (
            'add rule inet ctrport guard counter drop comment "unpublished port"',
            [],
            ["chain guard: rule 'unpublished port'"],
        ),
        ("chain inet ctrport forward { policy drop; }", [], ["chain forward: rule 'policy drop'"]),
        ("add chain inet ctrport extra", [], ["chain extra"]),
        (
            "add set inet ctrport extra { type ipv4_addr; }\nadd element inet ctrport extra { 192.0.2.1 }",
            [],
            ["set extra"],
        ),
        (
            (
                "flush chain inet ctrport guard\n"
                'add rule inet ctrport guard counter drop comment "unpublished port"\n'
                'add rule inet ctrport guard ct state established,related accept comment "answers"\n'
                'add rule inet ctrport guard accept comment "between containers of one network"\n'
                'add rule inet ctrport guard accept comment "between containers of an isolated network"'
            ),
            [],
            ["chain guard: rules in another order"],
        ),
    ],
    ids=[
        "deleted element",
        "changed element",
        "added element",
        "deleted bridge",
        "added link",
        "flushed chain",
        "added rule",
        "inserted rule without a comment",
        "rule twice",
        "changed policy",
        "added chain",
        "added set",
        "rules in another order",
    ],
)
def test_drift_is_found(inside: Netns, nft: LibNft, script: str, missing: list[str], surplus: list[str]):
    """What somebody else did to our table is named; a rebuild mends it."""
    wanted = table("8080:80")
    nft.apply(wanted.rebuild())
    inside.nft(script)
    listing = nft.listing()
    assert drift(wanted, listing) == Drift(missing=tuple(missing), surplus=tuple(surplus))
    assert listing != wanted.listing()
    nft.apply(wanted.rebuild())
    assert not drift(wanted, nft.listing())


def test_a_deleted_rule_is_drift(inside: Netns, nft: LibNft):
    """Any single rule that is missing is named, in every chain."""
    wanted = table("8080:80")
    for chain in wanted.chains:
        for rule in chain.rules:
            nft.apply(wanted.rebuild())
            shown = json.loads(inside.run("nft", "--json", "list", "chain", "inet", "ctrport", chain.name).stdout)
            rules = [item["rule"] for item in shown["nftables"] if "rule" in item]
            handle = next(r["handle"] for r in rules if r["comment"] == rule.comment)
            inside.nft(f"delete rule inet ctrport {chain.name} handle {handle}")
            found = drift(wanted, nft.listing())
            assert found == Drift(missing=(f"chain {chain.name}: rule {rule.comment!r}",), surplus=())


def test_a_flushed_table_is_drift(inside: Netns, nft: LibNft):
    """A table whose rules were all removed keeps its elements and misses every rule."""
    wanted = table("8080:80")
    nft.apply(wanted.rebuild())
    inside.nft("flush table inet ctrport")
    found = drift(wanted, nft.listing())
    assert found.surplus == ()
    assert len(found.missing) == sum(len(chain.rules) for chain in wanted.chains)


def test_listing_reads_our_table_only(inside: Netns, nft: LibNft):
    """Somebody else's table of any shape, in any family, is not looked at."""
    inside.nft("table ip ctrport { set s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }; }")
    listing: Listing | None = nft.listing()
    assert listing is None
