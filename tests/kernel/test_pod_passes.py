"""Pods through the program's passes, one after the other: what a pass remembers for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrport.containerd.pb import api_pb2 as api
from ctrport.model.workload import Key
from fakes import sandbox, sandbox_metadata

if TYPE_CHECKING:
    from passes import Writer

POD = Key("k8s.io", "pause")


def run_pod(writer: Writer, *, host_port: int) -> None:
    """Run a pod with a hostPort in the namespace of `a`, and make the pass that its event leads to."""
    ports = [{"container_port": 80, "host_port": host_port}]
    fields = sandbox(sandbox_metadata(port_mappings=ports))

    async def work() -> None:
        writer.containerd.add(POD, **fields)
        pid = writer.servers["a"][0].pid
        writer.containerd.processes[POD] = api.Process(id=POD.id, pid=pid, status=api.RUNNING)
        await writer.reconciler.refresh([POD])

    writer.wait(work())


def look(writer: Writer) -> set[Key]:
    """Make a pass over the pod, and give who is to be looked at once more."""
    writer.wait(writer.reconciler.refresh([POD]))
    return set(writer.reconciler.snapshot.uncertain)


def test_a_pod_with_a_host_port_is_looked_at_once_more_after_its_end(writer: Writer):
    """The plugin portmap takes its rules away later than that, and tells nobody; one more look is enough."""
    run_pod(writer, host_port=8080)
    assert look(writer) == set()
    writer.publish("b", "8080:80")
    assert writer.states("b") == [("waiting", "8080/tcp is translated by the hostPort of pod shop/web")]
    writer.containerd.exit(POD)
    assert look(writer) == {POD}
    assert writer.states("b") == [("active", "")]
    assert look(writer) == set()


def test_nobody_is_looked_at_who_is_gone(writer: Writer):
    """Neither when an event tells that it was removed, nor when a full pass does not find it."""
    for find_out in (lambda: look(writer), lambda: writer.wait(writer.reconciler.resync())):
        run_pod(writer, host_port=8080)
        writer.containerd.exit(POD)
        assert look(writer) == {POD}
        writer.containerd.delete(POD)
        find_out()
        assert writer.reconciler.snapshot.uncertain == set()
