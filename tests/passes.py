"""Whole passes of the program in a lab's host, over a containerd that tests fill; rules and packets are real."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from typing import TYPE_CHECKING, Any

from ctrport.config import Settings
from ctrport.containerd.client import Client
from ctrport.containerd.pb import api_pb2 as api
from ctrport.firewall.nft import LibNft
from ctrport.host.reservation import Reservation
from ctrport.model.workload import Key
from ctrport.reconcile import Reconciler
from fakes import FakeContainerd, spec
from lab import Lab, Netns, Server, serve

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

ADDRESSES = {"a": ("198.51.100.2", "2001:db8:a::2"), "b": ("198.51.100.3", "2001:db8:a::3")}


@dataclasses.dataclass
class Writer:
    """The program's passes in the host's namespace, on a containerd that tests fill."""

    lab: Lab
    containerd: FakeContainerd
    reconciler: Reconciler
    loop: asyncio.AbstractEventLoop
    netns: dict[str, Netns]
    servers: dict[str, list[Server]]

    @staticmethod
    def key(name: str) -> Key:
        return Key("default", name)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def publish(self, name: str, publish: str) -> None:
        """Start a container that asks for ports, and make the pass that its event leads to."""
        key = Key("default", name)

        async def work() -> None:
            self.containerd.add(key, spec({"ctrport.io/publish": publish}))
            pid = self.servers[name][0].pid
            self.containerd.processes[key] = api.Process(id=name, pid=pid, status=api.RUNNING)
            await self.reconciler.refresh([key])

        self.wait(work())

    def end(self, name: str) -> None:
        """End a container, and make the pass that its event leads to."""
        key = Key("default", name)

        async def work() -> None:
            self.containerd.delete(key)
            await self.reconciler.refresh([key])

        self.wait(work())

    def states(self, name: str) -> list[tuple[str, str]]:
        return [(str(b.state), b.reason) for b in self.reconciler.bindings(Key("default", name))]


@contextlib.contextmanager
def writing(lab: Lab, directory: Path) -> Iterator[Writer]:
    """Give a writer that has made its first pass, and two containers' namespaces that serve port 80."""
    lab.bridge("br0", "198.51.100.1/24", "2001:db8:a::1/64")
    for ns in (lab.host, lab.remote):  # a refusal must be told every time, not once a second
        ns.sysctl("net/ipv4/icmp_ratelimit", 0)
        ns.sysctl("net/ipv6/icmp/ratelimit", 0)
    netns, servers = {}, {}
    for name, (ipv4, ipv6) in ADDRESSES.items():
        netns[name] = lab.container_like(
            name, "br0", f"{ipv4}/24", f"{ipv6}/64", gateway4="198.51.100.1", gateway6="2001:db8:a::1"
        )
        servers[name] = [serve(netns[name], 80, p, f) for p in ("tcp", "udp") for f in (4, 6)]
    with passing(lab, directory, netns, servers) as writer:
        yield writer


@contextlib.contextmanager
def passing(
    lab: Lab, directory: Path, netns: dict[str, Netns], servers: dict[str, list[Server]]
) -> Iterator[Writer]:
    """Give a writer that has made its first pass, for containers whose processes are the first of their servers."""
    settings = Settings(address=str(directory / "c.sock"), root=directory / "root", state=directory / "state")
    settings.state.mkdir()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    lab.host.call(thread.start)  # a thread stays in the namespace of who started it, and so do those it starts

    async def start() -> Reconciler:
        await containerd.start_server()
        made = Reconciler(settings, await Client(settings.address).__aenter__(), LibNft(), Reservation())
        await made.resync()
        return made

    containerd = FakeContainerd(directory / "c.sock")
    reconciler = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    yield Writer(lab, containerd, reconciler, loop, netns, servers)

    async def stop() -> None:
        await reconciler._client.__aexit__(None, None, None)
        await containerd.stop_server()

    asyncio.run_coroutine_threadsafe(stop(), loop).result(20)
    assert reconciler._reservation is not None
    reconciler._reservation.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
