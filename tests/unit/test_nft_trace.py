"""Where hand-written nftables chains drop our packets, over rules as nft 1.0.6 prints them."""

from __future__ import annotations

from typing import Any

import pytest

from ctrport.firewall.foreign.nft_trace import Drop, find_drop
from ctrport.firewall.foreign.obstacle import Passage

PASSAGE = Passage(mark=0x10000, bridges=frozenset({"ctrport0"}), uplinks=frozenset({"eth0"}))
INSIDE = Passage(mark=0x10000, internal=frozenset({"cp-inside"}))
ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
REJECT = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
STATE, IN, OUT = {"ct": {"key": "state"}}, {"meta": {"key": "iifname"}}, {"meta": {"key": "oifname"}}
ANSWERS = ["established", "related"]


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def vmap(key: Any, *pairs: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": [list(pair) for pair in pairs]}}}


def to(name: str, how: str = "jump") -> dict[str, Any]:
    return {how: {"target": name}}


def found(
    *rules: list[dict[str, Any]], policy: str = "accept", passage: Passage = PASSAGE, **others: list[Any]
) -> Drop | None:
    """Trace a base chain `f`, whose rules have the handles 1, 2, …; those of other chains 101 …, 201 …."""
    start = {name: 100 * number for number, name in enumerate(("f", *others))}
    chains = {
        name: [{"chain": name, "handle": start[name] + n, "expr": expr} for n, expr in enumerate(listed, 1)]
        for name, listed in {"f": list(rules), **others}.items()
    }
    return find_drop("f", policy, chains["f"], passage, chains.__getitem__)


def drop(handle: int | None, before: int | None, chain: str = "f", verdict: str = "drop") -> Drop:
    return Drop(chain=chain, verdict=verdict, handle=handle, before=before)


@pytest.mark.parametrize(
    ("rules", "policy", "expected"),
    [
        pytest.param([], "accept", None, id="nothing"),
        pytest.param([], "drop", drop(None, None), id="policy"),
        pytest.param([[DROP]], "accept", drop(1, 1), id="all"),
        pytest.param([[ACCEPT], [DROP]], "drop", None, id="accepted before"),
        pytest.param(
            [[{"counter": {}}, {"log": None}, REJECT]], "accept", drop(1, 1, verdict="reject"), id="reject"
        ),
        pytest.param([[{"log": None}], [DROP]], "accept", drop(2, 1), id="logged before"),
        pytest.param([[{"limit": {"rate": 1}}, DROP]], "accept", None, id="by rate"),
        pytest.param(
            [[match({"payload": {"protocol": "ip", "field": "saddr"}}, "x"), DROP]], "accept", None, id="one"
        ),
        pytest.param([[match(IN, "@wan"), DROP]], "accept", None, id="a named set"),
        pytest.param([[match(IN, "eth0"), DROP]], "accept", drop(1, 1), id="from the uplink"),
        pytest.param([[match(IN, "eth*"), DROP]], "accept", drop(1, 1), id="a wildcard"),
        pytest.param([[match(IN, {"set": ["lo", "eth*"]}), DROP]], "accept", drop(1, 1), id="one of several"),
        pytest.param([[match(IN, "wg0"), DROP]], "accept", None, id="another interface"),
        pytest.param([[match(OUT, "ctrport0", "!="), DROP]], "accept", drop(1, 1), id="not to us"),
        pytest.param([[match(STATE, "invalid", "in"), DROP]], "accept", None, id="invalid"),
        pytest.param([[match(STATE, "new", "in"), DROP]], "accept", drop(1, 1), id="new"),
        pytest.param([[match(STATE, {"set": ANSWERS}), ACCEPT], [DROP]], "accept", drop(2, 2), id="answers pass"),
        pytest.param([[match(STATE, "new", "!="), ACCEPT], [DROP]], "accept", drop(2, 2), id="all but new pass"),
        pytest.param([[match({"meta": {"key": "nfproto"}}, "ipv4"), DROP]], "accept", drop(1, 1), id="all of IPv4"),
        pytest.param(
            [[match({"meta": {"key": "l4proto"}}, "tcp"), ACCEPT]], "drop", drop(None, None), id="tcp passes"
        ),
        pytest.param([[match({"meta": {"key": "l4proto"}}, "icmp"), DROP]], "accept", None, id="ping"),
        pytest.param([[{"return": None}], [DROP]], "accept", None, id="return"),
        pytest.param([[{"return": None}], [ACCEPT]], "drop", drop(None, None), id="return to a policy"),
    ],
)
def test_rules_of_the_base_chain(rules: list[Any], policy: str, expected: Drop | None):
    """Only what takes all packets of a kind that must pass counts, and the first of that."""
    assert found(*rules, policy=policy) == expected


def test_drops_in_chains_that_are_jumped_to():
    """The drop is named where it is, and what accepts belongs before the jump."""
    assert found([ACCEPT], policy="drop", others=[[DROP]]) is None
    assert found([to("a")], a=[[DROP]]) == drop(101, 1, "a")
    assert found([match(STATE, "invalid", "in"), DROP], [to("a")], a=[[to("b")]], b=[[DROP]]) == drop(201, 2, "b")
    assert found([match(IN, "wg0"), to("a")], a=[[DROP]]) is None
    assert found([match(IN, "eth0"), to("a")], a=[[match(STATE, "new", "in"), REJECT]]) == drop(
        101, 1, "a", "reject"
    )
    assert found([to("a")], a=[[{"log": None}], [DROP]]) == drop(102, 1, "a")


def test_jump_and_goto_end_differently():
    """After a jump the next rule is looked at; after a goto the policy."""
    assert found([to("a")], [DROP], a=[]) == drop(2, 2)
    assert found([to("a", "goto")], [DROP], a=[]) is None
    assert found([to("a", "goto")], [ACCEPT], policy="drop", a=[]) == drop(None, None)
    assert found([to("a")], [DROP], a=[[to("b", "goto")], [ACCEPT]], b=[]) == drop(2, 2)
    assert found([to("a")], [DROP], a=[[{"return": None}], [ACCEPT]]) == drop(2, 2)


def test_verdict_maps():
    """The first line of Debian's and RHEL's examples drops what is invalid and nothing else."""
    first = [vmap(STATE, ("established", ACCEPT), ("related", ACCEPT), ("invalid", DROP))]
    assert found(first) is None
    assert found(first, policy="drop") == drop(None, None)
    assert found(first, [DROP]) == drop(2, 2)
    assert found([vmap(STATE, ("new", to("a")), ("invalid", DROP))], a=[[DROP]]) == drop(101, 1, "a")
    assert found([vmap(STATE, ("new", {"continue": None}))], [ACCEPT], policy="drop") is None
    assert found([vmap(IN, ("eth0", DROP), ("lo", ACCEPT))]) == drop(1, 1)
    assert found([vmap(IN, ("wg0", DROP))]) is None
    assert found([vmap({"concat": [IN, OUT]}, ({"concat": ["eth0", "ctrport0"]}, DROP))]) is None
    assert found([{"vmap": {"key": IN, "data": "@zones"}}]) is None
    counted = {"elem": {"val": "eth0", "counter": {"packets": 0, "bytes": 0}}}
    assert found([vmap(IN, (counted, DROP))]) == drop(1, 1)


def test_circles_and_very_many_chains_come_to_an_end():
    """The kernel loads no circle; a table of hundreds of chains is looked into only so far."""
    assert found([to("a")], policy="drop", a=[[to("a")], [to("b")]], b=[[to("a")]]) == drop(None, None)
    many = {f"c{n}": [[to(f"c{n + 1}")]] for n in range(100)}
    assert found([to("c0")], **many, c100=[[DROP]]) is None


def test_an_operator_s_own_accepts_are_seen():
    """Interfaces and ct status say it as well as our own words; the mark alone is judged elsewhere."""
    mine = (
        [match({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT],
        [match(IN, "ctrport0"), ACCEPT],
        [match(OUT, "ctrport0"), match(STATE, ANSWERS, "in"), ACCEPT],
    )
    assert found(*mine, policy="drop") is None
    assert found(*mine[:2], policy="drop") == drop(None, None)


def test_internal_networks_ask_for_what_they_send_within():
    """Nothing that leaves or enters them must pass."""
    assert found([match(IN, "cp-inside"), match(OUT, "cp-inside"), ACCEPT], policy="drop", passage=INSIDE) is None
    assert found([match(OUT, "cp-inside", "!="), DROP], passage=INSIDE) is None
    assert found(policy="drop", passage=INSIDE) == drop(None, None)
