"""The quiet point: the kernel against the model, then packets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ctrport.repairs import PAUSES
from lab import REFUSED, Failure, exchange, http_get
from soak import kernel, wanted
from soak.answers import UDP_PORT
from soak.world import HOST4, HOST6, SECOND4, SHARED, SLOTS, TALK_PORT

if TYPE_CHECKING:
    from random import Random

    from soak.wanted import Container, Mapping
    from soak.world import World

# Seconds for the kernel to hold what is wanted: so many faults may be taken for a fight, in which a repair comes
# after a pause.
PATIENCE = PAUSES[1] + 10.0
ANSWER_PATIENCE = PATIENCE  # for a server to answer: another firewall may be in the way as long as that
SILENT = 12  # unpublished ports asked at each quiet point


class Quiet:
    """One look at a world in which nothing happens any more."""

    def __init__(self, world: World, rules: str) -> None:
        self.repair = 0.0  # seconds until the kernel was as wanted
        self.mismatches: list[str] = []
        self.probes = 0
        self._world = world
        self._rules = rules

    def compare(self) -> tuple[list[Container], list[Mapping]]:
        """Wait until the kernel holds what is wanted; what still differs then is a mismatch."""
        world, began = self._world, time.monotonic()
        while True:
            containers = wanted.read(world.containerd, world.published)
            granted = wanted.mappings(containers)
            found = self._differences(containers, granted)
            while found and time.monotonic() - began < PATIENCE:
                time.sleep(0.05)
                found = self._differences(containers, granted)
                if time.monotonic() - began > 1:  # a task may have come or gone meanwhile
                    break
            self.repair = time.monotonic() - began
            if not found or self.repair > PATIENCE:
                self.mismatches += found
                return containers, granted

    def _differences(self, containers: list[Container], granted: list[Mapping]) -> list[str]:
        host = self._world.lab.host
        found = kernel.differences(kernel.read(host), granted, containers, self._world.bridges())
        if not found and kernel.rules(host) != self._rules:
            found = ["the rules of the table are others than at the start"]
        return found

    def probe(self, containers: list[Container], granted: list[Mapping], rng: Random) -> None:
        """Ask every published port that is served, some that are not published, and the two that never stop."""
        world = self._world
        held = kernel.read(world.lab.host)
        if held is None:
            return  # told by `compare`
        paused = {container.name for container in containers if container.status != "RUNNING"}
        taken: set[tuple[str, int]] = set()
        for mapping in granted:
            port = kernel.port_of(held, mapping)
            taken.add((mapping.protocol, port))
            if mapping.container not in paused and mapping.target in {80, UDP_PORT}:
                for address in self._addresses(mapping):
                    self._expect(address, port, mapping.protocol, mapping.container)
        universe = [(p, 8000 + n) for n in range(10 * SLOTS + 20) for p in ("tcp", "udp")]
        universe += [("tcp", port) for port in SHARED] + [("tcp", 9999), ("udp", TALK_PORT)]
        for protocol, port in rng.sample([each for each in universe if each not in taken], SILENT):
            self._expect(rng.choice((HOST4, HOST6)), port, protocol, REFUSED)
        talkers = [m.container for m in granted if (m.protocol, m.ports[0]) == ("udp", TALK_PORT)]
        self._note(world.talker.hears(talkers))
        self._note(world.line.echoes())
        self._note(*self._stray())

    def _stray(self) -> list[str]:
        """Give what is left over once the watcher has had time to reach a containerd that was away, and to tidy."""
        began = time.monotonic()
        while (found := self._world.stray()) and time.monotonic() - began < PATIENCE:
            time.sleep(0.2)
        return found

    def _note(self, *found: str) -> None:
        self.probes += 1
        self.mismatches += [text for text in found if text]

    @staticmethod
    def _addresses(mapping: Mapping) -> list[str]:
        """Give what the remote machine reaches a mapping by."""
        if mapping.host_ip is not None:
            return [mapping.host_ip] if mapping.host_ip in {HOST4, HOST6, SECOND4} else []
        return [{4: HOST4, 6: HOST6}[family] for family in mapping.address]

    def _expect(self, address: str, port: int, protocol: str, who: str | Failure) -> None:
        """Ask until the right one answers, or is refused; the last answer counts."""
        self.probes += 1
        began = time.monotonic()
        while (answer := self._ask(address, port, protocol)) != who:
            if time.monotonic() - began > ANSWER_PATIENCE:
                self.mismatches.append(f"[{address}]:{port}/{protocol}: {answer!r} and not {who!r}")
                return
            time.sleep(0.05)

    def _ask(self, address: str, port: int, protocol: str) -> str | Failure:
        remote = self._world.lab.remote
        if protocol == "tcp":
            answer = http_get(remote, address, port, timeout=1)
            return answer if isinstance(answer, Failure) else answer.strip()
        heard = exchange(remote, address, port, b"?", proto="udp", timeout=1)
        return heard if isinstance(heard, Failure) else heard.decode()
