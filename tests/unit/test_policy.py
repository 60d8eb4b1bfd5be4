"""Who may publish what: rules one by one, then what holds for every policy, and every change of one."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrport.config.place import Place
from ctrport.config.policy import policy as read_policy
from ctrport.model import annotations, ports
from ctrport.model.bindings import Host, State
from ctrport.model.ledger import ALL_ALLOCATED, Ledger
from ctrport.model.policy import PROTECTED, Policy, Rule, Span
from ctrport.model.ports import Protocol
from ctrport.model.workload import Container, Endpoint, Key, Pod, Workload
from strategies import contested_mappings, port_mappings, workloads

if TYPE_CHECKING:
    from ctrport.model.bindings import Binding

ACTIVE, WAITING, REFUSED = State.ACTIVE, State.WAITING, State.REFUSED
BOTH = Endpoint(ipv4=IPv4Address("10.0.0.2"), ipv6=IPv6Address("fd00::2"))
ONLY4 = Endpoint(ipv4=IPv4Address("10.0.0.2"))
WEB = Pod(namespace="web", name="front", labels=(("tier", "edge"),))


def policy(text: str) -> Policy:
    """Read the rules as config.toml has them."""
    return read_policy(Place(value=tomllib.loads(text).get("policy", {}), file=Path("c"), text=text))


def asking(
    specs: str, pod: Pod | None = None, *, endpoint: Endpoint = BOTH, name: str = "a", created_at: int = 0
) -> Workload:
    mappings, errors = ports.parse_list(specs)
    assert not errors
    key = Key("default" if pod is None else "k8s.io", name)
    return Workload(key=key, created_at=created_at, requests=mappings, endpoint=endpoint, pod=pod)


def decided(ledger: Ledger, workload: Workload) -> list[tuple[int | None, State, str]]:
    return [(b.host_port, b.state, b.reason) for b in ledger.bindings(workload.key)]


def decide(rules: str, workload: Workload, host: Host | None = None) -> list[tuple[int | None, State, str]]:
    ledger = Ledger(host, policy=policy(rules))
    ledger.put(workload)
    ledger.settle()
    return decided(ledger, workload)


def states(rules: str, specs: str, pod: Pod | None = None) -> list[State]:
    return [state for _, state, _ in decide(rules, asking(specs, pod))]


# ------------------------------------------------------------------------------------------------- the defaults


def test_without_rules_plain_containers_may_everything():
    """Whoever reaches containerd's socket is root already."""
    assert states("", "22:22 6443:80 80 30000:80/sctp 127.0.0.1:8080:80") == [ACTIVE] * 5


def test_without_rules_pods_may_nothing():
    """An annotation must not go round Pod Security's ban of hostPort; the reason says what allows it."""
    assert decide("", asking("8080:80, 22:22, 81, 8000-8009:82", WEB)) == [
        (
            port,
            REFUSED,
            (
                'policy: no rule allows pods of Kubernetes namespace "web" to publish; to allow it, '
                f'in config.toml: [[policy.allow]] kubernetes_namespaces = ["web"], host_ports = [{asked}]'
            ),
        )
        for port, asked in ((8080, "8080"), (22, "22"), (None, '"32768-60999"'), (None, '"8000-8009"'))
    ]


def test_a_rule_for_another_namespace_changes_nothing():
    """Rules for containerd's namespaces do not speak of pods, not even of those in k8s.io, nor the reverse."""
    rules = '[[policy.allow]]\ncontainerd_namespaces = ["*"]\n[[policy.allow]]\nkubernetes_namespaces = ["shop"]\n'
    assert states(rules, "8080:80", WEB) == [REFUSED]
    rules = '[[policy.allow]]\nkubernetes_namespaces = ["*"]\nhost_ports = [1]\n'
    assert states(rules, "22:22 8080:80") == [ACTIVE, ACTIVE]


# ------------------------------------------------------------------------------------------------- rules

ANY = '[[policy.allow]]\nkubernetes_namespaces = ["web"]\n'
PLAIN = '[[policy.allow]]\ncontainerd_namespaces = ["default"]\n'


@pytest.mark.parametrize(
    ("rules", "specs", "expected"),
    [
        (PLAIN, "22:22 80", [ACTIVE, ACTIVE]),
        (PLAIN + "host_ports = []", "8080:80 80", [REFUSED, REFUSED]),
        (PLAIN + 'host_ports = [443, "8000-8001"]', "443:80 8001:80 8002:80", [ACTIVE, ACTIVE, REFUSED]),
        (PLAIN + 'host_ports = ["1-65535"]', "22:80 6443:80", [ACTIVE, ACTIVE]),
        (PLAIN + 'protocols = ["tcp"]', "8080:80 8080:80/udp", [ACTIVE, REFUSED]),
        (PLAIN + 'host_ips = ["127.0.0.0/8"]', "127.0.0.1:1:80 2:80 192.0.2.1:3:80", [ACTIVE, REFUSED, REFUSED]),
        (PLAIN + 'host_ips = ["0.0.0.0/0"]', "0.0.0.0:1:80 [::]:2:80 3:80", [ACTIVE, REFUSED, REFUSED]),
        (PLAIN + 'host_ips = ["0.0.0.0/0", "::/0"]', "0.0.0.0:1:80 [::]:2:80 3:80", [ACTIVE] * 3),
        (PLAIN + 'host_ips = ["2001:db8::/64"]', "[2001:db8::1]:1:80 [2001:db8:1::1]:2:80", [ACTIVE, REFUSED]),
        (PLAIN + 'labels = { tier = "edge" }', "8080:80", [REFUSED]),
        (
            '[[policy.allow]]\ncontainerd_namespaces = ["b*", "def*t"]\nhost_ports = [1]',
            "1:80 2:80",
            [ACTIVE, REFUSED],
        ),
        ('[[policy.allow]]\ncontainerd_namespaces = ["efaul", "d*x"]\nhost_ports = [1]', "1:80 2:80", [ACTIVE] * 2),
        # Two rules: either may allow, and one must allow the whole.
        (
            PLAIN + "host_ports = [1]\n" + PLAIN + 'host_ports = [2]\nhost_ips = ["127.0.0.1"]',
            "1:80 127.0.0.1:1:81/udp 127.0.0.1:2:80 2:80/udp",
            [ACTIVE, ACTIVE, ACTIVE, REFUSED],
        ),
    ],
)
def test_rules_for_plain_containers(rules: str, specs: str, expected: list[State]):
    """A containerd namespace that a rule names may only what rules allow."""
    assert states(rules, specs) == expected


@pytest.mark.parametrize(
    ("rules", "specs", "expected"),
    [
        (ANY, "8080:80 80", [ACTIVE, ACTIVE]),
        (ANY, "22:1 1023:2 6443:3 10250:4 10256:5 2379:6 2380:7 30000:8 32767:9", [REFUSED] * 9),
        (ANY, "1024:1 2378:2 2381:3 6442:4 10251:5 29999:6 32768:7", [ACTIVE] * 7),
        (ANY + 'host_ports = ["1-65535"]', "22:1 6443:2 10250:3 30000:4 8080:5", [REFUSED] * 4 + [ACTIVE]),
        (ANY + 'host_ports = ["1000-1100"]', "1000:1 1023:2 1024:3", [REFUSED, REFUSED, ACTIVE]),
        (ANY + 'host_ports = [22, "30000-30010"]', "22:1 30010:2 30011:3 23:4", [ACTIVE, ACTIVE, REFUSED, REFUSED]),
        (ANY + 'host_ports = ["1-1023", 10250]', "22:1 443:2 10250:3 6443:4", [ACTIVE, ACTIVE, ACTIVE, REFUSED]),
        (ANY + 'labels = { tier = "edge" }', "8080:80", [ACTIVE]),
        (ANY + 'labels = { tier = "edge", a = "b" }', "8080:80", [REFUSED]),
        (ANY + "[policy]\nprotected_ports = [16443]", "16443:80 8080:80", [REFUSED, ACTIVE]),
        (ANY + "host_ports = [16443]\n[policy]\nprotected_ports = [16443]", "16443:80", [ACTIVE]),
        ('[[policy.allow]]\nkubernetes_namespaces = ["w*"]', "8080:80", [ACTIVE]),
    ],
)
def test_rules_for_pods(rules: str, specs: str, expected: list[State]):
    """Protected ports are opened alone or in a range of nothing but protected ones."""
    assert states(rules, specs, WEB) == expected


@pytest.mark.parametrize(
    ("rules", "workload", "fault"),
    [
        (
            ANY + 'host_ports = [443, "8000-8010", "8011-8020"]',
            asking("22:22", WEB),
            (
                'Kubernetes namespace "web" may not publish on host port 22, which is protected and must be named; '
                "allowed: 443, 8000-8020"
            ),
        ),
        (
            PLAIN + "host_ports = [443]",
            asking("8000-8010:80"),
            'containerd namespace "default" may not publish on any of host ports 8000-8010; allowed: 443',
        ),
        (
            PLAIN + "host_ports = [443]",
            asking("80"),
            (
                'containerd namespace "default" may not publish on a port of the host\'s choice, which is one of '
                "32768-60999; allowed: 443"
            ),
        ),
        (
            PLAIN + 'host_ips = ["192.0.2.0/24", "2001:db8::1"]',
            asking("8080:80"),
            (
                'containerd namespace "default" may not publish on every address of the host; '
                "allowed: 192.0.2.0/24, 2001:db8::1"
            ),
        ),
        (
            PLAIN + 'host_ips = ["192.0.2.0/24"]',
            asking("127.0.0.1:8080:80"),
            'containerd namespace "default" may not publish on host IP 127.0.0.1; allowed: 192.0.2.0/24',
        ),
        (
            PLAIN + 'protocols = ["tcp"]',
            asking("8080:80/udp"),
            'containerd namespace "default" may not publish udp; allowed: tcp',
        ),
        (
            PLAIN + 'labels = { tier = "edge" }',
            asking("8080:80"),
            'of the rules for containerd namespace "default" none has labels of this container',
        ),
        (
            PLAIN + f"host_ports = {list(range(1, 40, 2))}",
            asking("8080:80"),
            (
                'containerd namespace "default" may not publish on host port 8080; '
                "allowed: 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 8 more"
            ),
        ),
        (
            "",
            asking("8080:80", Pod(namespace='x"]\x1b[2J' + "y" * 100, name="")),
            f'no rule allows pods of Kubernetes namespace "x\\"]\\u001b[2J{"y" * 73}..." to publish',
        ),
    ],
)
def test_reasons(rules: str, workload: Workload, fault: str):
    """A reason names who, what is not allowed, and what is; a name that is somebody else's word is quoted."""
    ((_, state, reason),) = decide(rules, workload)
    assert state is REFUSED
    assert reason.startswith(f"policy: {fault}; to allow it, in config.toml: [[policy.allow]] ")


def test_one_family_needs_its_own_addresses_only():
    """A container without IPv6 publishes on every address by IPv4 alone."""
    rules = PLAIN + 'host_ips = ["0.0.0.0/0"]'
    assert decide(rules, asking("8080:80", endpoint=ONLY4)) == [(8080, ACTIVE, "")]


# ------------------------------------------------------------------------------------ ports of the host's choice


def test_a_pool_gives_what_is_allowed_of_it():
    """A pool goes on behind the ports that may not be had, and is exhausted where the allowed ones are."""
    rules = PLAIN + 'host_ports = ["8003-8004"]'
    found = decide(rules, asking("8000-8009:80 8000-8009:81 8000-8009:82"))
    assert found == [(8003, ACTIVE, ""), (8004, ACTIVE, ""), (None, WAITING, ALL_ALLOCATED)]


def test_an_automatic_port_is_an_allowed_one():
    """It is of the host's range and of the rule's; tcp and udp get one number where the same ones are allowed."""
    host = Host(automatic=(40000, 40009))
    rules = PLAIN + 'host_ports = ["40005-50000", 8080]'
    assert decide(rules, asking("80 80/udp 81"), host) == [
        (40005, ACTIVE, ""),
        (40005, ACTIVE, ""),
        (40006, ACTIVE, ""),
    ]
    rules += "\n" + PLAIN + 'host_ports = [40003]\nprotocols = ["udp"]'
    assert [port for port, _, _ in decide(rules, asking("80 80/udp"), host)] == [40005, 40003]
    rules = PLAIN + 'protocols = ["udp"]'
    found = decide(rules, asking("80 80/udp"), host)
    assert [(port, state) for port, state, _ in found] == [(None, REFUSED), (40000, ACTIVE)]


# ------------------------------------------------------------------------------------------------- changes


def test_a_change_of_policy():
    """What is allowed from now on is mapped, what no longer is is unmapped, and who waited for it has the port."""
    first, second = asking("8080:80"), asking("8080:80", WEB, name="b", created_at=1)
    ledger = Ledger(policy=policy(ANY))
    for workload in (first, second):
        ledger.put(workload)
    ledger.settle()
    assert [decided(ledger, w)[0][:2] for w in (first, second)] == [(8080, ACTIVE), (8080, WAITING)]
    ledger.set_policy(policy(ANY + PLAIN + "host_ports = []"))
    assert sorted((c.old.state, c.new.state) for c in ledger.settle() if c.old and c.new) == [
        (ACTIVE, REFUSED),
        (WAITING, ACTIVE),
    ]
    ledger.set_policy(policy(""))
    ledger.settle()
    assert [decided(ledger, w)[0][:2] for w in (first, second)] == [(8080, ACTIVE), (8080, REFUSED)]


def test_a_port_of_the_host_s_choice_moves():
    """One that may not stay where it is gets another, and a port that may stay stays."""
    workload = asking("80 8000-8009:81")
    ledger = Ledger(Host(automatic=(40000, 40009)))
    ledger.put(workload)
    ledger.settle()
    ledger.set_policy(policy(PLAIN + 'host_ports = ["40004-40009", "8000-8009"]'))
    changes = ledger.settle()
    assert [(c.old.host_port, c.new.host_port) for c in changes if c.old and c.new] == [(40000, 40004)]
    assert decided(ledger, workload) == [(40004, ACTIVE, ""), (8000, ACTIVE, "")]
    ledger.set_policy(policy(PLAIN + "host_ports = [22]"))
    ledger.settle()
    assert [state for _, state, _ in decided(ledger, workload)] == [REFUSED, REFUSED]
    ledger.set_policy(Policy())
    ledger.settle()
    assert [state for _, state, _ in decided(ledger, workload)] == [ACTIVE, ACTIVE]


def test_labels_that_come_and_go():
    """The same requests with other labels are judged anew."""
    workload = asking("8080:80")
    ledger = Ledger(policy=policy(PLAIN + 'labels = { tier = "edge" }'))
    for labels, expected in (((), REFUSED), ((("tier", "edge"),), ACTIVE), ((("tier", "core"),), REFUSED)):
        ledger.put(replace(workload, labels=labels))
        ledger.settle()
        assert decided(ledger, workload)[0][1] is expected


# ------------------------------------------------------------------------------------------------- properties

NAMES = ["*", "*", "*", "default", "k8s.io", "web", "shop", "w*"]
LABELS = st.sampled_from([(), (), (("tier", "edge"),), (("tier", "edge"), ("a", "b"))])


def spans(low: int, high: int) -> st.SearchStrategy[Span]:
    pair = st.lists(st.integers(low, high), min_size=2, max_size=2).map(sorted)
    return pair.map(lambda two: Span(*two))


@st.composite
def rules(draw: st.DrawFn, low: int, high: int) -> Rule:
    names = tuple(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)))
    networks = ["0.0.0.0/0", "::/0", "127.0.0.0/8", "192.0.2.1", "2001:db8::/64"]
    return Rule(
        **{draw(st.sampled_from(["containerd_namespaces", "kubernetes_namespaces"])): names},
        labels=draw(LABELS),
        host_ports=draw(st.none() | st.lists(spans(low, high), max_size=3).map(tuple)),
        host_ips=draw(
            st.none()
            | st.none()
            | st.lists(st.sampled_from(networks), max_size=3).map(lambda n: tuple(map(ip_network, n)))
        ),
        protocols=draw(st.none() | st.none() | st.lists(st.sampled_from(Protocol), max_size=2).map(tuple)),
    )


def policies(low: int = 8079, high: int = 8084) -> st.SearchStrategy[Policy]:
    protected = st.lists(spans(low, high), max_size=1).map(tuple)
    return st.builds(Policy, protected_ports=protected, allow=st.lists(rules(low, high), max_size=4).map(tuple))


PODS = st.none() | st.builds(Pod, namespace=st.sampled_from(["web", "shop", "x"]), name=st.just("p"), labels=LABELS)


def wanted(mappings: Any) -> st.SearchStrategy[Workload]:
    return st.builds(
        lambda workload, pod, labels: replace(workload, pod=pod, labels=labels), workloads(mappings), PODS, LABELS
    )


def is_allowed(rules: Policy, workload: Workload, binding: Binding) -> bool:
    """Judge one binding, written apart from the policy's own way: port by port, address by address."""
    port, pod = binding.host_port or 0, workload.pod
    protected = {p for a, b in (*PROTECTED, *rules.protected_ports) for p in range(a, b + 1)} if pod else set()
    name = pod.namespace if pod else workload.key.namespace
    named = False
    for rule in rules.allow:
        patterns = rule.kubernetes_namespaces if pod else rule.containerd_namespaces
        if not any(p in ("*", name) or (p == "w*" and name.startswith("w")) for p in patterns):
            continue
        named = True
        labels = pod.labels if pod else workload.labels
        written = rule.host_ports if rule.host_ports is not None else (Span(1, 65535),)
        ranges = [set(range(a, b + 1)) for a, b in written]
        if port in protected:
            ranges = [r for r in ranges if r <= protected]
        host_ip = binding.mapping.host_ip
        addresses = [host_ip] if host_ip is not None and not host_ip.is_unspecified else []
        if not addresses:
            addresses += [IPv4Address(0), IPv4Address("255.255.255.255")] * bool(binding.ipv4)
            addresses += [IPv6Address("::"), IPv6Address("ffff::")] * bool(binding.ipv6)
        if (
            all(label in labels for label in rule.labels)
            and (rule.protocols is None or binding.mapping.protocol in rule.protocols)
            and any(port in r for r in ranges)
            and (rule.host_ips is None or all(any(a in n for n in rule.host_ips) for a in addresses))
        ):
            return True
    return not named and pod is None


def bindings(ledger: Ledger, final: dict[Key, Workload]) -> list[tuple[Workload, Binding]]:
    return [(final[key], b) for key in sorted(final) for b in ledger.bindings(key)]


HOST = Host(automatic=(8080, 8083))


@settings(deadline=None)  # some histories are long
@given(history=st.lists(wanted(contested_mappings()) | policies(), max_size=10))
def test_no_binding_is_outside_the_policy(history: list[Workload | Policy]):
    """After any containers and any changes of policy, what is served is allowed, and what is refused is not."""
    ledger, rules, final = Ledger(HOST), Policy(), {}
    for event in history:
        if isinstance(event, Policy):
            rules = event
            ledger.set_policy(rules)
        else:
            final[event.key] = event
            ledger.put(event)
        ledger.settle()
        for workload, binding in bindings(ledger, final):
            if binding.state is ACTIVE:
                assert is_allowed(rules, workload, binding), binding
            elif binding.reason.startswith("policy: "):
                low, high = binding.mapping.host_port_pool or HOST.automatic
                tried = [binding.host_port] if binding.mapping.host_port else range(low, high + 1)
                for port in tried:
                    assert not is_allowed(rules, workload, replace(binding, host_port=port)), binding
            elif binding.state is WAITING and binding.mapping.host_port:
                assert is_allowed(rules, workload, binding), binding


@given(
    wishes=st.lists(wanted(contested_mappings(exact=True)), max_size=5, unique_by=lambda w: w.key),
    changes=st.lists(policies(), min_size=1, max_size=4),
)
def test_a_change_of_policy_is_a_fresh_decision(wishes: list[Workload], changes: list[Policy]):
    """Whatever the policy was before, exact requests are decided as by a writer that starts with it now."""
    ledger, fresh = Ledger(HOST), Ledger(HOST, policy=changes[-1])
    for workload in wishes:
        ledger.put(workload)
        fresh.put(workload)
    for each in changes:
        ledger.set_policy(each)
        ledger.settle()
    fresh.settle()
    for workload in wishes:
        found = {b.mapping: b for b in ledger.bindings(workload.key)}
        assert found == {b.mapping: b for b in fresh.bindings(workload.key)}


@given(workload=wanted(port_mappings()), rules=policies(1, 65535))
def test_the_rule_that_a_reason_proposes_allows_it(workload: Workload, rules: Policy):
    """Who puts the rule into config.toml has his port."""
    ledger = Ledger(policy=rules)
    ledger.put(workload)
    ledger.settle()
    for binding in ledger.bindings(workload.key):
        _, found, proposal = binding.reason.partition("in config.toml: ")
        if not found:
            continue
        header, _, keys = proposal.partition(" ")
        text = header + "\n" + re.sub(r", (?=[a-z_]+ = )", "\n", keys)
        again = Ledger(policy=replace(rules, allow=(*rules.allow, *policy(text).allow)))
        again.put(replace(workload, requests=(binding.mapping,)))
        again.settle()
        (mended,) = again.bindings(workload.key)
        assert mended.state is ACTIVE, (text, mended.reason)


# -------------------------------------------------------------------------------------------- labels as a source


@pytest.mark.parametrize(
    ("annotation", "label", "trusted", "expected"),
    [
        (None, "8080:80", False, None),
        (None, "8080:80", True, ["8080:80/tcp"]),
        ("8081:80", "8080:80", True, ["8081:80/tcp"]),
        ("", "8080:80", True, None),
        ("8081:80", None, True, ["8081:80/tcp"]),
        ("8081:80", "8080:80", False, ["8081:80/tcp"]),
    ],
)
def test_a_label_asks_only_where_it_is_trusted(
    annotation: str | None, label: str | None, *, trusted: bool, expected: list[str] | None
):
    """The policy says so; and an annotation, an empty one too, comes before it."""
    container = Container(
        key=Key("default", "a"),
        created_at=1,
        annotations={} if annotation is None else {annotations.PUBLISH: annotation},
        labels={"tier": "edge"} | ({} if label is None else {annotations.PUBLISH: label}),
    )
    workload = annotations.read_workload(container, None, trust_labels=trusted)
    assert (workload and [str(m) for m in workload.requests]) == expected
    if workload:
        assert dict(workload.labels) == container.labels


@pytest.mark.parametrize("mark", ["nerdctl/networks", "nerdctl/namespace"])
def test_a_label_beside_those_of_nerdctl_is_never_trusted(mark: str):
    """Such a container is published by nerdctl; an annotation on it is of the one who ran it, and counts."""
    labels = {annotations.PUBLISH: "8080:80", mark: "default"}
    container = Container(key=Key("default", "a"), created_at=1, labels=labels)
    assert not annotations.asks(container, trust_labels=True)
    asking = replace(container, annotations={**labels, annotations.PUBLISH: "8081:80"})
    workload = annotations.read_workload(asking, None, trust_labels=True)
    assert workload is not None
    assert [str(m) for m in workload.requests] == ["8081:80/tcp"]


def test_a_label_of_dockerd_is_never_trusted():
    """What dockerd makes is in a namespace of its own, and published by dockerd."""
    container = Container(key=Key("moby", "a"), created_at=1, labels={annotations.PUBLISH: "8080:80"})
    assert not annotations.asks(container, trust_labels=True)


def test_a_label_in_a_pod_is_never_trusted():
    """Its containers' labels are the image's."""
    labels = {annotations.PUBLISH: "8080:80", annotations.CRI_KIND: "container"}
    container = Container(key=Key("k8s.io", "a"), created_at=1, labels=labels)
    assert not annotations.asks(container, trust_labels=True)
