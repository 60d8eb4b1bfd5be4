"""Pods, as the CRI plugin's metadata tells of them: what is read, and that nothing in it can do harm."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrport.containerd import cri, decode
from ctrport.containerd.pb import api_pb2 as api
from ctrport.firewall import ruleset
from ctrport.firewall.ruleset import Links
from ctrport.log import printable
from ctrport.model.annotations import CRI_KIND, asks, is_auto_remove, read_workload
from ctrport.model.bindings import Listener, State
from ctrport.model.ledger import Ledger
from ctrport.model.ports import PortMapping, Protocol
from ctrport.model.workload import Container, Endpoint, Key, Pod, Sandbox, Workload
from fakes import sandbox, sandbox_metadata
from strategies import ANY_POD, hostile_text, spoilt_json

BOTH = Endpoint(ipv4=IPv4Address("198.51.100.2"), ipv6=IPv6Address("2001:db8:a::2"), interface="cni0")
POD = Pod(namespace="shop", name="web", uid="3f1c")
KEY = Key("k8s.io", "c4f")


def read(metadata: dict[str, Any]) -> Sandbox:
    return cri.sandbox(json.dumps(metadata).encode())


def with_port(**fields: Any) -> tuple[PortMapping, ...]:
    return read(sandbox_metadata(port_mappings=[{"container_port": 80, **fields}])).host_ports


def pod(metadata: dict[str, Any] | bytes, **fields: Any) -> Container:
    return decode.container("k8s.io", api.Container(id="c4f", **{**sandbox(metadata), **fields}))


def test_a_pod():
    """Name, labels, annotation and hostPorts are read."""
    ports = [
        {"container_port": 80, "host_port": 8080},
        {"container_port": 53, "host_port": 53, "protocol": 1, "host_ip": "192.0.2.1"},
        {"container_port": 9, "host_port": 9, "protocol": 2, "host_ip": "::"},
        {"container_port": 443},
    ]
    labels = {"tier": "front", "app": "web"}
    assert read(sandbox_metadata("8081:80", labels=labels, port_mappings=ports)) == Sandbox(
        pod=Pod(namespace="shop", name="web", uid="3f1c", labels=(("app", "web"), ("tier", "front"))),
        publish="8081:80",
        host_ports=(
            PortMapping(container_port=80, host_port=8080),
            PortMapping(container_port=53, host_port=53, protocol=Protocol.UDP, host_ip=ip_address("192.0.2.1")),
            PortMapping(container_port=9, host_port=9, protocol=Protocol.SCTP, host_ip=ip_address("::")),
        ),
    )


def test_a_pod_that_says_little():
    """What the CRI plugin leaves out because it is zero is nothing."""
    config = {"metadata": {"name": "web", "namespace": "shop"}}
    assert read({"Metadata": {"Config": config}}) == Sandbox(pod=Pod(namespace="shop", name="web"))


def test_a_pod_on_the_host_s_network():
    """It is known by its namespace option, and has no hostPorts: its processes listen themselves."""
    linux = {"security_context": {"namespace_options": {"network": 2}}}
    ports = [{"container_port": 80, "host_port": 80}]
    assert read(sandbox_metadata("80", linux=linux, port_mappings=ports)) == Sandbox(
        pod=POD, publish="80", host_network=True
    )


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (b"", "the metadata of its sandbox is not JSON"),
        (b'{"Metadata": "\xff"}', "the metadata of its sandbox is not JSON"),
        (b"[" * 100_000, "the metadata of its sandbox is not JSON"),
        (b'{"Version": ' + b"9" * 5_000 + b"}", "the metadata of its sandbox is not JSON"),
        (
            json.dumps(sandbox_metadata(annotations=["8080:80"])).encode(),
            "the annotations in the metadata of its sandbox are not an object",
        ),
    ],
    ids=["empty", "UTF-8", "depth", "digits", "annotations"],
)
def test_metadata_that_cannot_be_read(metadata: bytes, problem: str):
    """It is a problem, since nobody knows what was asked for."""
    assert cri.sandbox(metadata) == Sandbox(problem=problem)


def test_an_annotation_that_is_not_text():
    """It is a problem of its pod."""
    found = read(sandbox_metadata(annotations={"ctrport.io/publish": 8080}))
    assert found == Sandbox(pod=POD, problem="the annotation ctrport.io/publish is not text")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        3,
        {"name": "web"},
        {"name": "web", "namespace": ""},
        {"name": "a/b", "namespace": "shop"},
        {"name": "web\n", "namespace": "shop"},
        {"name": "web", "namespace": "\x1b[2J"},
        {"name": "w" * 254, "namespace": "shop"},
        {"name": ["web"], "namespace": "shop"},
    ],
)
def test_a_pod_without_a_name(metadata: Any):
    """A policy could not tell who asks: nothing is published, and a pod that asks for nothing is no problem."""
    problem = "the pod has no name and namespace as Kubernetes gives them"
    assert read(sandbox_metadata("8080:80", metadata=metadata)) == Sandbox(problem=problem)
    assert read(sandbox_metadata(metadata=metadata)) == Sandbox()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"host_port": 0},
        {"host_port": -1},
        {"host_port": 65536},
        {"host_port": "8080"},
        {"host_port": True},
        {"host_port": 8080.0},
        {"host_port": 8080, "container_port": None},
        {"host_port": 8080, "protocol": 3},
        {"host_port": 8080, "protocol": "TCP"},
        {"host_port": 8080, "host_ip": "nonsense"},
        {"host_port": 8080, "host_ip": "fe80::1%eth0"},
    ],
)
def test_a_host_port_that_is_none(fields: dict[str, Any]):
    """What portmap would refuse is passed over."""
    assert with_port(**fields) == ()


def test_a_host_port_on_every_address():
    """An empty host IP, or one that is no text, is every address."""
    every = (PortMapping(container_port=80, host_port=8080),)
    assert (with_port(host_port=8080, host_ip=""), with_port(host_port=8080, host_ip=3)) == (every, every)


# ---------------------------------------------------------------------------------------------- which containers


def test_only_a_pause_container_is_a_pod():
    """Neither a pod's other containers, nor anybody in another namespace with an image that sets the label."""
    fields = sandbox(sandbox_metadata("8080:80"))
    assert decode.container("k8s.io", api.Container(id="c4f", **fields)).sandbox == Sandbox(
        pod=POD, publish="8080:80"
    )
    assert decode.container("default", api.Container(id="c4f", **fields)).sandbox is None
    fields["labels"] = {CRI_KIND: "container"}
    assert decode.container("k8s.io", api.Container(id="c4f", **fields)).sandbox is None
    assert decode.container("k8s.io", api.Container(id="c4f", labels={CRI_KIND: "sandbox"})).sandbox == Sandbox()


@pytest.mark.parametrize("kind", ["sandbox", "container"])
def test_copied_annotations_are_not_read(kind: str):
    """An annotation in the OCI spec of a pod's container is a copy: nothing is published or removed by it."""
    notes = {"ctrport.io/publish": "8080:80", "ctrport.io/rm": "true"}
    container = Container(key=KEY, created_at=1, labels={CRI_KIND: kind}, annotations=notes)
    assert (asks(container), is_auto_remove(container), read_workload(container, BOTH)) == (False, False, None)


def test_a_container_beside_the_pods():
    """One of plain ctr in Kubernetes' namespace, or in another with such a label, is a container like any other."""
    notes = {"ctrport.io/publish": "8080:80", "ctrport.io/rm": "true"}
    for container in (
        Container(key=KEY, created_at=1, annotations=notes),
        Container(key=Key("default", "web"), created_at=1, annotations=notes, labels={CRI_KIND: "container"}),
    ):
        assert (asks(container), is_auto_remove(container)) == (True, True)
        assert read_workload(container, BOTH) == Workload(
            key=container.key,
            created_at=1,
            requests=(PortMapping(container_port=80, host_port=8080),),
            endpoint=BOTH,
            labels=tuple(container.labels.items()),
        )


def test_the_workload_of_a_pod():
    """It carries the pod; hostPorts stand in the families that the pod has, under its name."""
    ports = [
        {"container_port": 80, "host_port": 9090},
        {"container_port": 80, "host_port": 9091, "host_ip": "2001:db8::1"},
    ]
    container = pod(sandbox_metadata("8080:80 nonsense", port_mappings=ports))
    holder = "the hostPort of pod shop/web"
    workload = read_workload(container, BOTH)
    assert workload == Workload(
        key=KEY,
        created_at=0,
        requests=(PortMapping(container_port=80, host_port=8080),),
        problems=("pod shop/web: port spec 'nonsense': 'nonsense' is not a container port or a range of them",),
        endpoint=BOTH,
        labels=tuple(container.labels.items()),
        pod=POD,
        host_ports=(
            Listener(Protocol.TCP, 9090, ip_address("0.0.0.0"), (4, 6), holder, translated=True),  # noqa: S104 - a wildcard
            Listener(Protocol.TCP, 9091, ip_address("2001:db8::1"), (6,), holder, translated=True),
        ),
    )
    only4 = read_workload(container, Endpoint(ipv4=BOTH.ipv4))
    assert only4 is not None
    assert [listener.families for listener in only4.host_ports] == [(4,), ()]


def test_the_workload_of_a_pod_on_the_host_s_network():
    """It is refused by name, and the host's uplink is not taken for its interface."""
    linux = {"security_context": {"namespace_options": {"network": 2}}}
    problem = "pod shop/web: the pod uses the host's network: its ports are the host's already"
    container = pod(sandbox_metadata("8080:80", linux=linux))
    labels = tuple(container.labels.items())
    assert read_workload(container, BOTH) == Workload(
        key=KEY, created_at=0, problems=(problem,), labels=labels, pod=POD
    )
    assert not asks(pod(sandbox_metadata(linux=linux)))
    broken = Container(key=KEY, created_at=0, host_network=True, sandbox=cri.sandbox(b""))
    assert read_workload(broken, BOTH) == Workload(
        key=KEY, created_at=0, problems=("the metadata of its sandbox is not JSON",)
    )


def test_names_for_people():
    """A pod is called by its namespace and name, any other container by its id."""
    assert pod(sandbox_metadata()).name == "shop/web"
    assert pod(b"").name == Container(key=KEY, created_at=1).name == "c4f"


# ------------------------------------------------------------------------------------------------- anything at all

FULL = sandbox_metadata(
    "8080:80",
    labels={"app": "web"},
    port_mappings=[{"container_port": 80, "host_port": 9090, "protocol": 1, "host_ip": "192.0.2.1"}],
    linux={"security_context": {"namespace_options": {"network": 2}}},
)
# An upper bound of what may stand in a table: nft's own words, numbers, addresses, names in quotes.
LINES = re.compile(r"[A-Za-z0-9 .:,;/_\-@\"{}()!=&|~?<>+\t]*")
GOOD = Workload(
    key=Key("default", "good"),
    created_at=0,
    requests=(PortMapping(container_port=80, host_port=7),),
    endpoint=Endpoint(ipv4=IPv4Address("203.0.113.2")),
)


@settings(
    max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(metadata=spoilt_json(FULL) | st.binary(max_size=64))
def test_no_metadata_is_too_bad(metadata: bytes):
    """Whatever stands there becomes a pod with clean names, or a problem."""
    found = cri.sandbox(metadata)
    if found.pod is not None:
        name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
        assert name.fullmatch(found.pod.namespace)
        assert name.fullmatch(found.pod.name)
        assert name.fullmatch(found.pod.uid or "none")
        assert all(isinstance(text, str) for pair in found.pod.labels for text in pair)
    assert not (found.publish.strip() and (found.problem or found.pod is None))
    assert all(mapping.host_port for mapping in found.host_ports)


@settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    publish=hostile_text(),
    labels=st.dictionaries(hostile_text(), hostile_text(), max_size=2),
    name=hostile_text() | st.just("web"),
    metadata=st.none() | spoilt_json(FULL),
    identifier=st.text(st.characters(codec="utf-8"), min_size=1, max_size=100),
)
def test_no_pod_is_too_bad(
    publish: str, labels: dict[str, str], name: str, metadata: bytes | None, identifier: str
):
    """From record to table: no failure, no text of theirs among the rules, and an earlier mapping stays."""
    whole = sandbox_metadata(publish, name=name, labels=labels)
    record = api.Container(id=identifier, **sandbox(metadata or whole))
    record.created_at.seconds = 1
    container = decode.container("k8s.io", record)
    workload = read_workload(container, BOTH)
    ledger = Ledger(policy=ANY_POD)
    ledger.put(GOOD)
    if workload is not None:
        ledger.put(workload)
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(map(printable, workload.problems)))
        "".join(workload.problems).encode()  # no lone surrogate, which no terminal takes
    ledger.settle()
    bindings = [b for key in ledger.owners() for b in ledger.bindings(key)]
    json.dumps([b.to_json() for b in bindings])
    text = ruleset.build(bindings, Links()).rebuild()
    assert all(LINES.fullmatch(line) for line in text.split("\n"))
    held = workload is not None and any(p.port == GOOD.requests[0].host_port for p in workload.host_ports)
    assert held or ledger.bindings(GOOD.key)[0].state is State.ACTIVE
