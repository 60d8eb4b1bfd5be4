"""Kubernetes pods: made through CRI as the kubelet does, connected by CNI plugins, published by annotation."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from containerd_instance import WEB, LabContainerd
from cri import NAMESPACE, Cri
from images import pause_image, web_image
from lab import REFUSED, Answer, Lab, ask, http_get, serve, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri import Pod
    from program import Cli, Watcher

HOST, HOST6 = "192.0.2.1", "2001:db8::1"
PAUSE = "docker.io/library/pause:test"
PAGE = "It works!\n"
DUAL_STACK = ("198.51.100.0/26", "2001:db8:a::/64")

# What every watcher here is told.
CONFIG = """
[[policy.allow]]
kubernetes_namespaces = ["*"]
host_ports = [80, "1024-65535"]
"""

# Some administrators have annotations copied into the OCI specs of a pod's containers, as runtimes ask for it.
COPIED = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = ["ctrport.io/*"]
  container_annotations = ["ctrport.io/*"]
"""


@pytest.fixture(scope="module")
def containerd(containerd_path: str | None) -> Iterator[LabContainerd]:
    """Give a containerd with CRI, its images, and a pod network of both families, on a lab's host."""
    with (
        Lab(forwarding=False) as lab,
        LabContainerd(lab, path=containerd_path, cri=True, sandbox_image=PAUSE, config=COPIED) as instance,
        Cri(instance) as cri,
    ):
        for build, ref in ((pause_image, PAUSE), (web_image, WEB)):
            archive = build(instance.directory / "image.tar", ref)
            instance.import_image(archive, namespace=NAMESPACE)
            archive.unlink()
            cri.wait_for_image(ref)
        connect_pods(cri, instance, "dual", *DUAL_STACK)
        yield instance


def connect_pods(cri: Cri, containerd: LabContainerd, name: str, *subnets: str) -> None:
    """Connect the pods that come from now on to a bridge with hostPorts, as a cluster's CNI configuration does."""
    ipam: dict[str, Any] = {
        "type": "host-local",
        "dataDir": str(containerd.directory / "leases"),
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
    }
    bridge = {"type": "bridge", "bridge": f"cni-{name}", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    network = {"cniVersion": "1.0.0", "name": name, "plugins": [bridge, portmap]}
    (containerd.directory / "cni" / "10-pods.conflist").write_text(json.dumps(network))
    until(lambda: name in cri.network_names(), within=10, what=f"the pod network {name}")


@pytest.fixture
def ctrport(ctrport: Cli) -> Cli:
    """Give the program, told what every watcher here is told."""
    ctrport.config.write_text(CONFIG)
    return ctrport


@pytest.fixture
def cri(containerd: LabContainerd) -> Iterator[Cri]:
    """Give the CRI service; pods that a test leaves are removed."""
    with Cri(containerd) as cri:
        try:
            yield cri
        finally:
            cri.remove_all()


def answers(lab: Lab, port: int, name: str, address: str = HOST, *, within: float = 15) -> None:
    """Wait until the pod of that name answers the remote."""

    def who() -> bool:
        found = ask(lab.remote, address, port)
        return isinstance(found, Answer) and found.name == name

    until(who, within=within, what=f"an answer of {name} at {address} port {port}")


def is_refused(lab: Lab, port: int, address: str = HOST) -> None:
    until(lambda: ask(lab.remote, address, port) is REFUSED, within=15, what=f"a refusal at {address} port {port}")


def listed(ctrport: Cli) -> dict[str, dict[str, Any]]:
    """Give the containers of Kubernetes' namespace, running or not, by id."""
    return {entry["id"]: entry for entry in ctrport.json("-n", NAMESPACE, "ps", "-a")["containers"]}


def states(ctrport: Cli, pod: Pod) -> list[tuple[int, str, str]]:
    return [(m["host_port"], m["state"], m["reason"]) for m in listed(ctrport)[pod.id]["mappings"]]


def test_from_the_annotation_to_the_answer(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """A pod is run, and a remote peer is answered over IPv4 and IPv6, with nothing called in between."""
    pod = cri.run("web", "8080:80", labels={"app": "web"})
    cri.start_container(pod, "httpd", WEB)
    until(lambda: http_get(lab.remote, HOST, 8080) == PAGE, within=15, what="the page")
    assert http_get(lab.remote, HOST6, 8080) == PAGE
    assert "192.0.2.2" in str(http_get(lab.remote, HOST, 8080, "/cgi-bin/whoami"))
    for address in ("127.0.0.1", HOST, HOST6):
        assert http_get(lab.host, address, 8080) == PAGE
    assert pod.netns is not None
    for address in (HOST, HOST6):
        assert http_get(pod.netns, address, 8080) == PAGE
    entry = listed(ctrport)[pod.id]
    assert (entry["name"], entry["addresses"]) == ("shop/web", list(pod.addresses))
    assert (len(pod.addresses), states(ctrport, pod)) == (2, [(8080, "active", "")])
    shown = ctrport("-n", NAMESPACE, "ps").stdout
    assert "shop/web" in shown
    assert "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp" in shown
    assert "published pod shop/web 8080/tcp" in watcher.log
    assert ctrport("port", "shop/web").stdout == "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"
    missing = ctrport("port", "shop/nothing")
    assert (missing.returncode, "there is no pod shop/nothing" in missing.stderr) == (1, True)


def test_ipv4_only(watcher: Watcher, cri: Cri, containerd: LabContainerd, lab: Lab):
    """On a pod network of one family the host's other family refuses."""
    connect_pods(cri, containerd, "ipv4", "203.0.113.0/28")
    try:
        pod = cri.run("web", "8080:80")
        assert len(pod.addresses) == 1
        with serve(pod.netns, 80):
            answers(lab, 8080, "web")
            assert ask(lab.remote, HOST6, 8080) is REFUSED
    finally:
        connect_pods(cri, containerd, "dual", *DUAL_STACK)
    assert watcher.running


def test_the_pod_network_stays_as_open_as_it_was(watcher: Watcher, cri: Cri, lab: Lab):
    """Ports that are not published stay reachable at the pod's address: closing them is the cluster's affair."""
    pod = cri.run("web", "8080:80")
    other = cri.run("other")
    with serve(pod.netns, 80), serve(pod.netns, 81), serve(pod.netns, 81, family=6, bind=pod.addresses[1]):
        answers(lab, 8080, "web")
        is_refused(lab, 8081)
        for peer in (lab.remote, lab.host, other.netns):
            for address in pod.addresses:
                found = ask(peer, address, 81)
                assert isinstance(found, Answer), (peer, address, found)
    assert watcher.running


def test_host_network(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """A pod on the host's network has nothing to publish: it is refused by name, and no rule comes of it."""
    before = lab.host.run("nft", "--stateless", "list", "table", "inet", "ctrport").stdout
    # As the kubelet does for such pods, with each port as a hostPort.
    port = {"container_port": 80, "host_port": 80}
    pod = cri.run("proxy", "8080:80", host_network=True, ports=(port,))
    reason = "pod shop/proxy: the pod uses the host's network: its ports are the host's already"
    until(lambda: reason in watcher.log, what="the refusal in the log")
    entry = listed(ctrport)[pod.id]
    assert (entry["mappings"], entry["problems"]) == ([], [reason])
    assert lab.host.run("nft", "--stateless", "list", "table", "inet", "ctrport").stdout == before
    web = cri.run("web", "80:80")  # nobody translates port 80 to the host itself
    with serve(web.netns, 80):
        answers(lab, 80, "web")


PROTECTED = (22, 6443, 10250, 30000)
NAMED = f"""
[[policy.allow]]
kubernetes_namespaces = ["shop"]
host_ports = {list(PROTECTED)}

[[policy.allow]]
kubernetes_namespaces = ["lab"]
"""


def test_policy(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """What no rule allows, a protected port and a program's port: refused with reasons; on SIGHUP mapped."""
    ctrport.config.write_text('[[policy.allow]]\nkubernetes_namespaces = ["shop"]\n')
    watcher.signal(signal.SIGHUP)
    until(lambda: "config.toml" in watcher.log, what="the reload")
    program = serve(lab.host, 9090)
    before = lab.host.run("nft", "--stateless", "list", "table", "inet", "ctrport").stdout
    stranger = cri.run("stranger", "8080:80", namespace="lab")
    greedy = cri.run("greedy", " ".join(f"{port}:80" for port in (*PROTECTED, 9090)))

    def found() -> dict[int, tuple[str, str]]:
        return {m[0]: m[1:] for pod in (stranger, greedy) for m in states(ctrport, pod)}

    until(lambda: set(found()) == {8080, *PROTECTED, 9090}, what="all of them in ps")
    said = found()
    assert {port: state for port, (state, _) in said.items()} == {
        8080: "refused",
        **dict.fromkeys(PROTECTED, "refused"),
        9090: "waiting",
    }
    assert all("[[policy.allow]]" in reason for port, (_, reason) in said.items() if port != 9090)
    assert f"(pid {program.pid})" in said[9090][1]
    assert lab.host.run("nft", "--stateless", "list", "table", "inet", "ctrport").stdout == before
    for port in (8080, *PROTECTED):
        is_refused(lab, port)
    answers(lab, 9090, "host")
    program.close()
    ctrport.config.write_text(NAMED)
    watcher.signal(signal.SIGHUP)
    with serve(stranger.netns, 80), serve(greedy.netns, 80):
        answers(lab, 8080, "stranger")
        for port in PROTECTED:
            answers(lab, port, "greedy")
    # By name are allowed those four alone: the program's port is free now, and not this pod's.
    assert found()[9090][0] == "refused"


def test_a_host_port_that_came_first(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """A hostPort works on, an annotation for its port waits with its name, and is served after its end."""
    old = cri.run("old", ports=({"container_port": 80, "host_port": 9090},))
    own = cri.run("own", "9091:80", ports=({"container_port": 80, "host_port": 9091},))
    new = cri.run("new", "9090:80 9090:80/udp")
    with serve(old.netns, 80), serve(own.netns, 80), serve(new.netns, 80), serve(new.netns, 80, "udp"):
        udp = (9090, "active", "")
        waits = "9090/tcp is translated by the hostPort of pod shop/old"
        until(lambda: states(ctrport, new) == [(9090, "waiting", waits), udp], what="the wait")
        waits_for_itself = "9091/tcp is translated by the hostPort of pod shop/own"
        assert states(ctrport, own) == [(9091, "waiting", waits_for_itself)]
        answers(lab, 9090, "old")
        answers(lab, 9091, "own")
        watcher.restart()
        assert states(ctrport, new) == [(9090, "waiting", waits), udp]
        cri.stop(old)
        answers(lab, 9090, "new", within=10)  # portmap takes its rules away when it sees fit
        assert states(ctrport, new) == [(9090, "active", ""), udp]


def test_a_host_port_that_comes_later(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """Nothing stops portmap, so our mapping of its port gives way; one from a pool takes the next port."""
    exact = cri.run("exact", "9090:80")
    pool = cri.run("pool", "9091-9092:80")
    with serve(exact.netns, 80), serve(pool.netns, 80):
        answers(lab, 9090, "exact")
        answers(lab, 9091, "pool")
        ports = ({"container_port": 80, "host_port": 9090}, {"container_port": 80, "host_port": 9091})
        late = cri.run("late", ports=ports)
        with serve(late.netns, 80):
            for port, name in ((9090, "late"), (9091, "late"), (9092, "pool")):
                answers(lab, port, name)
            until(lambda: states(ctrport, exact)[0][1] == "waiting", what="the wait")
        cri.remove(late)
        answers(lab, 9090, "exact", within=10)
        answers(lab, 9092, "pool")
    assert watcher.running


def test_deletion(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """A pod that is stopped is not reached any more; one that is removed is not listed either."""
    pod = cri.run("web", "8080:80")
    with serve(pod.netns, 80), serve(pod.netns, 80, family=6, bind=pod.addresses[1]):
        answers(lab, 8080, "web")
        answers(lab, 8080, "web", HOST6)
        cri.stop(pod)
    is_refused(lab, 8080)
    is_refused(lab, 8080, HOST6)
    assert states(ctrport, pod) == []
    cri.remove(pod)
    until(lambda: pod.id not in listed(ctrport), what="the removal")
    assert watcher.running


def test_the_death_of_the_pause_container_and_a_new_sandbox(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """A pod whose pause container is killed loses its port, though its record stays; its next sandbox gets it."""
    pod = cri.run("web", "8080:80")
    with serve(pod.netns, 80):
        answers(lab, 8080, "web")
        os.kill(cri.pid(pod.id), signal.SIGKILL)
        is_refused(lab, 8080)
        assert states(ctrport, pod) == []
        assert listed(ctrport)[pod.id]["name"] == "shop/web"
        again = cri.run("web", "8080:80", attempt=1)
        assert again.addresses != pod.addresses
        with serve(again.netns, 80, name="again"):
            answers(lab, 8080, "again")
            assert ctrport("port", "shop/web", "80").stdout.splitlines()[0] == "0.0.0.0:8080"
            cri.remove(pod)
            watcher.signal(signal.SIGHUP)
            answers(lab, 8080, "again")
            assert states(ctrport, again) == [(8080, "active", "")]


def test_while_nobody_watches(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """Of pods that come and go while the watcher is down, the next start serves those that are there."""
    gone, stays = cri.run("gone", "8080:80"), cri.run("stays", "8081:80")
    with serve(gone.netns, 80), serve(stays.netns, 80):
        answers(lab, 8080, "gone")
        answers(lab, 8081, "stays")
        watcher.kill()
        cri.remove(gone)
        comes = cri.run("comes", "8082:80")
        heir = cri.run("heir", "8080:80")
        with serve(comes.netns, 80), serve(heir.netns, 80):
            watcher.start()
            for port, name in ((8080, "heir"), (8081, "stays"), (8082, "comes")):
                answers(lab, port, name)
    assert states(ctrport, comes) == [(8082, "active", "")]


def test_pods_are_kubernetes_to_stop(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """`stop`, `start` and `rm` refuse a pod, by its name and by its containers' ids, with what to do instead."""
    pod = cri.run("web", "8080:80")
    part = cri.start_container(pod, "httpd", WEB)
    until(lambda: http_get(lab.remote, HOST, 8080) == PAGE, within=15, what="the page")
    is_a_pod = (
        "ctrport: shop/web is a pod, which Kubernetes starts, stops and removes\n"
        "  mend: kubectl -n shop delete pod web; for its ports alone: ctrport unpublish shop/web --all\n"
    )
    is_a_part = (
        f"ctrport: container {part} is a part of a pod, which Kubernetes starts, stops and removes\n"
        "  mend: kubectl delete pod\n"
    )
    before = listed(ctrport)
    for command in (("stop",), ("start",), ("rm",), ("rm", "-f")):
        for name, said in ((str(pod), is_a_pod), (pod.id, is_a_pod), (part, is_a_part)):
            result = ctrport("-n", NAMESPACE, *command, name)
            assert (result.returncode, result.stdout, result.stderr) == (1, "", said)
    assert listed(ctrport) == before
    assert http_get(lab.remote, HOST, 8080) == PAGE
    missing = ctrport("stop", "shop/nothing")
    assert (missing.returncode, "there is no pod shop/nothing" in missing.stderr) == (1, True)
    assert watcher.running
    ctrport("unpublish", str(pod), "--all", check=True)
    is_refused(lab, 8080)


def test_a_malformed_annotation(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """It is told by the pod's name and the spec, harms no other pod, and the pod's next sandbox mends it."""
    good = cri.run("good", "8080:80")
    with serve(good.netns, 80):
        answers(lab, 8080, "good")
        bad = cri.run("bad", '8081:80 8082:\x1b[31m" drop', labels={"a": "\x1b"})
        reason = "pod shop/bad: port spec '8082:\\x1b[31m\"': '\\x1b[31m\"' is not a container port"
        until(lambda: reason in watcher.log, what="the refusal in the log")
        entry = listed(ctrport)[bad.id]
        assert [(m["host_port"], m["state"]) for m in entry["mappings"]] == [(8081, "active")]
        assert entry["problems"][0].startswith(reason)
        assert "\x1b" not in watcher.log + ctrport("-n", NAMESPACE, "ps").stdout
        answers(lab, 8080, "good")
        cri.remove(bad)
        mended = cri.run("bad", "8081:80 8082:80", attempt=1)
        with serve(mended.netns, 80):
            answers(lab, 8082, "bad")
        assert listed(ctrport)[mended.id]["problems"] == []


def test_copies_of_annotations(ctrport: Cli, watcher: Watcher, cri: Cri, lab: Lab):
    """Only the pod is published, once, also where containerd copies annotations; and none can have it removed."""
    notes = {"ctrport.io/rm": "true", "ctrport.io/network": "default"}
    pod = cri.run("web", "8080:80", annotations=notes)
    container = cri.start_container(
        pod, "httpd", WEB, "sleep", "600", annotations={"ctrport.io/publish": "8081:80", **notes}
    )
    with serve(pod.netns, 80):
        answers(lab, 8080, "web")
        is_refused(lab, 8081)
        found = listed(ctrport)
        assert [m["state"] for m in found[pod.id]["mappings"]] == ["active"]
        assert found[container]["mappings"] == []
        os.kill(cri.pid(container), signal.SIGKILL)
        os.kill(cri.pid(pod.id), signal.SIGKILL)
        is_refused(lab, 8080)
    ctrport("sync", check=True)
    assert {pod.id, container} <= listed(ctrport).keys()
    assert "removed" not in watcher.log
