"""What somebody has done to our table, in words."""

from __future__ import annotations

from dataclasses import replace

from ctrport.firewall import damage, ruleset
from ctrport.firewall.table import Element, Listing, Table, Transaction


def whole() -> Table:
    return ruleset.build([], ruleset.Links(bridges=frozenset({"ctrport0"})))


def listing() -> Listing:
    return whole().listing()


def test_rules():
    """Chains and rules that are missing, too many or others are named, three of them at most."""
    table, have = whole(), listing()
    guard = have.chains["guard"]
    assert damage.rules(None, table) == "table inet ctrport was gone"
    assert "was another one, or the table was switched off" in damage.rules(have, table)

    def said(**chains: tuple[str, ...]) -> str:
        return damage.rules(replace(have, chains={**have.chains, **chains}), table)

    assert said(guard=guard[:-1]) == "chain guard lacked the rule 'unpublished port'"
    assert said(guard=(*guard, "x")) == "chain guard had other rules too, or in another order"
    assert said(other=()) == "chain other does not belong there"
    gone = damage.rules(replace(have, chains={}), table)
    assert gone.startswith("chain loopback was gone, chain prerouting was gone, chain output was gone and 5 more")


def test_elements():
    """Elements that were missing, changed or nobody's are named by map and key."""
    old, new = Element("tcp . 80", "192.0.2.7 . 80"), Element("tcp . 80", "192.0.2.8 . 80")
    change = Transaction("inet ctrport")
    change.delete("published4", old)
    change.add("published4", new)
    change.add("published4", Element("tcp . 81", "192.0.2.8 . 80"))
    change.delete("bridges", Element('"br9"'))
    assert damage.elements(change) == (
        'published4 had another tcp . 80, published4 lacked tcp . 81, bridges had "br9", which nobody asked for'
    )
