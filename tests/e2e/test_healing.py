"""What must not take the rest along, on a real containerd: shims that hang, and containerd that is away."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from lab import http_get, until

if TYPE_CHECKING:
    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"


def answers(lab: Lab, *ports: int, within: float = 10.0) -> None:
    for port in ports:
        until(
            lambda port=port: http_get(lab.remote, "192.0.2.1", port) == PAGE,
            within=within,
            what=f"the page at {port}",
        )


def uncertain(ctrport: Cli) -> bool:
    return "tasks-uncertain" in ctrport("doctor").stdout


def test_shims_that_hang(ctrport: Cli, watcher: Watcher, lab: Lab):
    """Their ports stay, also over a new watcher; passes go on for all others; later all is known again."""
    with (
        ctrport.container("-p", "8080:80") as first,
        ctrport.container("-p", "8081:80") as second,
        ctrport.container("-p", "8082:80") as third,
    ):
        answers(lab, 8080, 8081, 8082)
        hung = {s.container: s.pid for s in ctrport.containerd._shims() if s.container in (first, second)}
        assert len(hung) == 2
        for pid in hung.values():
            os.kill(pid, signal.SIGSTOP)
        try:
            ctrport("sync", check=True)
            assert uncertain(ctrport)
            with ctrport.container("-p", "8083:80"):
                answers(lab, 8083)
            ctrport("sync", check=True)
            watcher.kill()
            watcher.start(within=60)
            answers(lab, 8080, 8081, 8082)
            ctrport("sync", check=True)
            answers(lab, 8080, 8081, 8082)
            ctrport("stop", third, check=True)
            until(lambda: http_get(lab.remote, "192.0.2.1", 8082) != PAGE, within=10, what="the end of the third")
            answers(lab, 8080, 8081)
        finally:
            for pid in hung.values():
                os.kill(pid, signal.SIGCONT)
        until(lambda: not uncertain(ctrport), within=60, every=0.5, what="clear answers")
        assert [ctrport.entry(name)["mappings"][0]["state"] for name in (first, second)] == ["active", "active"]
        answers(lab, 8080, 8081)


def test_a_flush_while_containerd_is_away(ctrport: Cli, watcher: Watcher, lab: Lab):
    """Ports are back without containerd; what it did meanwhile is taken in when it is there again."""
    with ctrport.container("-p", "8080:80"):
        answers(lab, 8080)
        ctrport.containerd.kill()
        until(lambda: "no events from containerd" in watcher.log, within=20, what="the watcher's words")
        lab.host.nft("flush ruleset")
        answers(lab, 8080)
        until(lambda: "table inet ctrport was gone" in watcher.log, within=10, what="the watcher's words")
        ctrport.containerd.start()
        with ctrport.container("-p", "8081:80"):
            answers(lab, 8080, 8081)
