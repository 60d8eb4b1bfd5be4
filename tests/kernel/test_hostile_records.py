"""Containers whose authors mean no good, through whole passes into the kernel."""

from __future__ import annotations

import dataclasses
import itertools
import json
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrport.containerd import decode
from ctrport.containerd.pb import api_pb2 as api
from ctrport.firewall import ruleset
from ctrport.firewall.nft import LibNft
from ctrport.firewall.ruleset import MAPS, Links
from ctrport.host import facts
from ctrport.model import ports
from ctrport.model.annotations import CRI_KIND
from ctrport.model.bindings import Listener
from ctrport.model.ledger import Ledger
from ctrport.model.ports import Protocol
from ctrport.model.workload import Endpoint, Key, Workload
from ctrport.reconcile import Reconciler
from fakes import sandbox, sandbox_metadata, spec
from passes import ADDRESSES
from strategies import ANY_POD, hostile_text, spec_text

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from passes import Writer

# portmap's shape, in a table of somebody else's.
FOREIGN = """
table ip cni_hostport {
    chain hostports { tcp dport 9999 dnat to 198.51.100.3:80; }
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump hostports;
    }
}
"""
BROKEN = (
    b"",
    b"\xff\xfe",
    b'{"Metadata": {"Config": {"annotations": {"ctrport.io/publish": "8080:80 \xff"}}}}',
    json.dumps(sandbox_metadata("8080:80"))[:-1].encode(),
    b"[" * 100_000,
    *(
        json.dumps(sandbox_metadata("8080:80", **config)).encode()
        for config in (
            {"annotations": "ctrport.io/publish"},
            {"annotations": {"ctrport.io/publish": ["8080:80"]}},
            {"metadata": {"name": 'web"; flush ruleset; "', "namespace": "shop"}},
            {"linux": {"security_context": {"namespace_options": {"network": 2}}}},
        )
    ),
)


class Asked(NamedTuple):
    """A record, and what is validly asked in it."""

    namespace: str
    fields: dict[str, Any]
    wish: str = ""
    host_port: int | None = None


def asked() -> SearchStrategy[Asked]:
    """Give records of every kind, hostile in all that their authors write."""
    text = hostile_text().map(lambda text: text.encode("utf-8", "replace").decode())
    wish = st.one_of(text, spec_text(), st.integers(8080, 8083).map(lambda port: f"{port}:80 {port}:53/udp"))
    labels = st.dictionaries(text, text, max_size=2)
    host_port = st.none() | st.integers(8080, 8083)

    def pod(wish: str, labels: dict[str, str], notes: dict[str, str], host_port: int | None) -> Asked:
        config: dict[str, Any] = {"labels": labels, "annotations": {**notes, "ctrport.io/publish": wish}}
        if host_port:
            config["port_mappings"] = [{"container_port": 80, "host_port": host_port}]
        return Asked("k8s.io", sandbox(sandbox_metadata(**config)), wish, host_port)

    def container(wish: str, labels: dict[str, str], notes: dict[str, str], kind: str) -> Asked:
        """One of ctr; in Kubernetes' namespace, a pod's other container, with a copy of the annotation."""
        namespace = "k8s.io" if kind else "default"
        oci = AnyMessage(
            type_url=decode.SPEC_TYPE, value=json.dumps(spec({**notes, "ctrport.io/publish": wish})).encode()
        )
        labels = {**labels, CRI_KIND: kind} if kind else labels
        return Asked(namespace, {"labels": labels, "spec": oci}, "" if kind else wish)

    def broken(metadata: bytes) -> Asked:
        return Asked("k8s.io", sandbox(metadata))

    return st.one_of(
        st.builds(pod, wish, labels, labels, host_port),
        st.builds(container, wish, labels, labels, st.sampled_from(["", "container"])),
        st.integers(0, len(BROKEN) - 1).map(lambda which: broken(BROKEN[which])),
    )


def identifiers() -> SearchStrategy[str]:
    """Give names of containers: any text, though containerd itself would let few of them pass."""
    return st.text(st.characters(codec="utf-8"), min_size=1, max_size=90) | hostile_text().map(
        lambda text: text.encode("utf-8", "replace").decode()[:200] or "none"
    )


def workload(key: Key, number: int, each: Asked, name: str) -> Workload:
    """Give what a record asks for, made from what the test knows and not from the record."""
    ipv4, ipv6 = ADDRESSES[name]
    mappings, _ = ports.parse_list(each.wish)
    listener = Listener(Protocol.TCP, each.host_port or 0, IPv4Address(0), (4, 6), "")
    return Workload(
        key=key,
        created_at=number,
        requests=mappings,
        endpoint=Endpoint(ipv4=IPv4Address(ipv4), ipv6=IPv6Address(ipv6)),
        host_ports=(listener,) if each.host_port else (),
    )


@pytest.fixture
def foreign(writer: Writer) -> str:
    """Put somebody else's table beside ours; give how it is listed."""
    writer.lab.host.nft(FOREIGN)
    return writer.lab.host.nft("list table ip cni_hostport")


def test_the_table_is_what_the_valid_ones_ask(writer: Writer, foreign: str):
    """Hundreds of sets of records, read in a full pass and by events: what is asked, and nothing else touched."""
    relays = writer.reconciler.settings.config.relay_ipv6_loopback
    host = writer.lab.host.call(lambda: facts.read(relays=relays))
    foreign_port = Listener(Protocol.TCP, 9999, IPv4Address(0), (4,), translated=True)
    nft = writer.lab.host.call(LibNft)
    fake = writer.containerd
    numbers = itertools.count(1)

    async def passes(early: list[Key], late: dict[Key, Any], processes: dict[Key, Any]) -> None:
        reconciler = Reconciler(writer.reconciler.settings, writer.reconciler.snapshot._client, nft)
        await reconciler.resync()
        fake.records.update(late)
        fake.processes.update(processes)
        await reconciler.refresh(list(late))
        assert {*early, *late} == reconciler.snapshot.known

    @settings(
        max_examples=200,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(
        records=st.lists(st.tuples(asked(), identifiers()), min_size=1, max_size=5, unique_by=lambda pair: pair[1]),
        split=st.integers(0, 5),
    )
    def check(records: list[tuple[Asked, str]], split: int) -> None:
        writer.lab.host.nft("table inet ctrport\ndelete table inet ctrport")
        made: dict[Key, Any] = {}
        processes: dict[Key, Any] = {}
        wanted: list[Workload] = []
        for (each, identifier), name in zip(records, itertools.cycle("ab"), strict=False):
            key = Key(each.namespace, identifier)
            number = next(numbers)
            made[key] = api.Container(id=identifier, created_at={"seconds": 0, "nanos": number}, **each.fields)
            pid = writer.servers[name][0].pid
            processes[key] = api.Process(id=identifier, pid=pid, status=api.RUNNING)
            wanted.append(workload(key, number, each, name))
        early, late = list(made)[:split], list(made)[split:]
        fake.records = {key: made[key] for key in early}
        fake.processes = {key: processes[key] for key in early}
        writer.wait(passes(early, {key: made[key] for key in late}, processes))
        ledger = Ledger(dataclasses.replace(host, listeners=(*host.listeners, foreign_port)), policy=ANY_POD)
        for part in (wanted[:split], wanted[split:]):
            for each_wanted in part:
                ledger.put(each_wanted)
            ledger.settle()
        bindings = [b for key in ledger.owners() for b in ledger.bindings(key)]
        expected = ruleset.build(bindings, Links()).elements
        listing = nft.listing()
        assert listing is not None
        assert {name: listing.elements[name] for name in MAPS} == {name: expected[name] for name in MAPS}

    check()
    assert writer.lab.host.nft("list table ip cni_hostport") == foreign
    assert sorted(writer.lab.host.nft("list tables").split("\n"))[1:] == sorted(
        ["table inet ctrport", "table inet ctrport-user", "table ip cni_hostport"]
    )
