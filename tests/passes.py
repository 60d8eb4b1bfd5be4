"""Whole passes of the program in a lab's host, over a containerd that tests fill; rules and packets are real."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import threading
from typing import TYPE_CHECKING, Any

from ctrport.config import Config, Settings
from ctrport.containerd.client import Client
from ctrport.containerd.pb import api_pb2 as api
from ctrport.firewall.nft import LibNft
from ctrport.host.relay import Relay
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
def writing(lab: Lab, directory: Path, **config: Any) -> Iterator[Writer]:
    """Give a writer that has made its first pass, and two containers' namespaces that serve port 80.

    It is the watcher's: it holds ports and relays, as far as its configuration says so.
    """
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
    with passing(lab, directory, netns, servers, **config) as writer:
        yield writer


@contextlib.contextmanager
def passing(
    lab: Lab, directory: Path, netns: dict[str, Netns], servers: dict[str, list[Server]], **config: Any
) -> Iterator[Writer]:
    """Give a writer that has made its first pass, for containers whose processes are the first of their servers."""
    settings = Settings(
        address=str(directory / "c.sock"),
        root=directory / "root",
        state=directory / "state",
        config=dataclasses.replace(Config(), **config),
    )
    settings.state.mkdir(exist_ok=True)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    lab.host.call(thread.start)  # a thread stays in the namespace of who started it, and so do those it starts

    containerd = FakeContainerd(directory / "c.sock")
    reservation = Reservation() if settings.config.reserve_ports else None
    started: concurrent.futures.Future[Reconciler] = concurrent.futures.Future()
    stop = asyncio.Event()

    async def live() -> None:
        await containerd.start_server()
        try:
            async with Client(settings.address) as client, Relay() as relay:
                relays = relay if settings.config.relay_ipv6_loopback else None
                reconciler = Reconciler(settings, client, LibNft(), reservation, relays)
                await reconciler.resync()
                started.set_result(reconciler)
                await stop.wait()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise
        finally:
            await containerd.stop_server()

    life = asyncio.run_coroutine_threadsafe(live(), loop)
    yield Writer(lab, containerd, started.result(20), loop, netns, servers)
    loop.call_soon_threadsafe(stop.set)
    life.result(20)
    if reservation is not None:
        reservation.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
