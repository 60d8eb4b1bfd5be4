"""nftables' nouns as text, and the difference between two tables."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ctrport.firewall.table import (
    Chain,
    Element,
    Elements,
    Listing,
    Rule,
    Set,
    Table,
    Transaction,
    difference,
)

PORTS = Set(name="ports", key_type="inet_proto . inet_service", value_type="ipv4_addr . inet_service", counter=True)
LINKS = Set(name="links", key_type="ifname")
WEB = Element("tcp . 8080", "10.0.0.2 . 80", "default/web")
TABLE = Table(
    family="inet",
    name="t",
    sets=(PORTS, LINKS),
    chains=(
        Chain(
            name="forward",
            hook="type filter hook forward priority filter; policy accept;",
            rules=(Rule("counter drop", "all of it"), Rule("accept", "never")),
        ),
        Chain(name="guard"),
    ),
    elements={"ports": {WEB.key: WEB}},
)


def elements() -> st.SearchStrategy[Elements]:
    """Few keys and values, so that they meet: in one table, in the other, in both, changed or not."""
    element = st.builds(
        Element, st.sampled_from("abc"), st.sampled_from(["", "1", "2"]), st.sampled_from(["", "x"])
    )
    named = st.lists(element, max_size=4).map(lambda found: {e.key: e for e in found})
    return st.dictionaries(st.sampled_from(["s", "m", "n"]), named, max_size=3)


def applied(have: Elements, transaction: Transaction) -> Elements:
    """Do as nftables does: delete what is there, then add what is not; anything else is an error."""
    found = {name: dict(each) for name, each in have.items()}
    for name, gone in transaction.deleted.items():
        for key in gone:
            del found[name][key]
    for name, new in transaction.added.items():
        for key, element in new.items():
            assert key not in found.setdefault(name, {})
            found[name][key] = element
    return found


def without_empty(found: Elements) -> Elements:
    return {name: each for name, each in found.items() if each}


def test_elements_in_nft_s_words():
    """Key, comment and value, each where nft wants it."""
    assert str(WEB) == 'tcp . 8080 comment "default/web" : 10.0.0.2 . 80'
    assert str(Element("tcp . 8080", "10.0.0.2 . 80")) == "tcp . 8080 : 10.0.0.2 . 80"
    assert str(Element('"br0"')) == '"br0"'


def test_the_whole_declaration():
    """Sets with their elements, then chains with their rules, as `nft list` indents them."""
    assert TABLE.declaration() == (
        "table inet t {\n"
        "\tmap ports {\n"
        "\t\ttype inet_proto . inet_service : ipv4_addr . inet_service\n"
        "\t\tcounter\n"
        "\t\telements = {\n"
        '\t\t\ttcp . 8080 comment "default/web" : 10.0.0.2 . 80\n'
        "\t\t}\n"
        "\t}\n"
        "\n"
        "\tset links {\n"
        "\t\ttype ifname\n"
        "\t}\n"
        "\n"
        "\tchain forward {\n"
        "\t\ttype filter hook forward priority filter; policy accept;\n"
        '\t\tcounter drop comment "all of it"\n'
        '\t\taccept comment "never"\n'
        "\t}\n"
        "\n"
        "\tchain guard {\n"
        "\t}\n"
        "}\n"
    )


def test_a_rebuild_is_one_script():
    """Declared so that it can be deleted, deleted, declared in full."""
    assert TABLE.rebuild() == f"add table inet t\ndelete table inet t\n{TABLE.declaration()}"


def test_what_can_be_compared():
    """Rules by their comments in order, elements in full, sets without elements too."""
    assert TABLE.listing() == Listing(
        chains={"forward": ("all of it", "never"), "guard": ()},
        elements={"ports": {WEB.key: WEB}, "links": {}},
    )


def test_deletions_come_first():
    """A key gets another value by going and coming, in one script."""
    moved = WEB._replace(value="10.0.0.3 . 80")
    transaction = difference({"ports": {WEB.key: WEB}}, {"ports": {WEB.key: moved}}, "inet t")
    assert transaction.render() == (
        "delete element inet t ports { tcp . 8080 }\n"
        'add element inet t ports { tcp . 8080 comment "default/web" : 10.0.0.3 . 80 }\n'
    )


def test_many_elements_are_one_line():
    """Elements of one set go in one command."""
    want = {"links": {name: Element(name) for name in ('"a"', '"b"')}}
    assert difference({}, want, "inet t").render() == 'add element inet t links { "a", "b" }\n'


def test_what_comes_back_unchanged_is_left_alone():
    """Deleted and added again with the same value and comment is no change; with another it is one."""
    transaction = Transaction("inet t")
    transaction.delete("ports", WEB)
    transaction.add("ports", WEB)
    assert not transaction
    transaction.delete("ports", WEB)
    transaction.add("ports", WEB._replace(comment="default/other"))
    assert transaction
    assert transaction.deleted == {"ports": {WEB.key: WEB}}


@given(have=elements(), want=elements())
def test_a_difference_leads_from_one_to_the_other(have: Elements, want: Elements):
    """Applied as nftables would, it gives what is wanted; the way back leads back."""
    there, back = difference(have, want, "inet t"), difference(want, have, "inet t")
    assert without_empty(applied(have, there)) == without_empty(want)
    assert without_empty(applied(want, back)) == without_empty(have)


@given(have=elements(), want=elements())
def test_a_difference_names_nothing_that_is_right(have: Elements, want: Elements):
    """Only what differs is in it, and where nothing differs it is empty."""
    transaction = difference(have, want, "inet t")
    for name, gone in transaction.deleted.items():
        assert all(want.get(name, {}).get(key) != element for key, element in gone.items())
    for name, new in transaction.added.items():
        assert all(have.get(name, {}).get(key) != element for key, element in new.items())
    assert bool(transaction) == (without_empty(have) != without_empty(want))
    assert not difference(want, want, "inet t")


@given(have=elements(), want=elements())
def test_the_script_names_every_change_once(have: Elements, want: Elements):
    """A line for each set and kind of change, deletions before additions."""
    transaction = difference(have, want, "inet t")
    lines = [line for line in transaction.render().splitlines() if line]
    kinds = [line.partition(" ")[0] for line in lines]
    assert kinds == sorted(kinds, reverse=True)
    assert len(lines) == sum(bool(e) for e in (*transaction.deleted.values(), *transaction.added.values()))
