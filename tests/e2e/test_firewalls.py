"""The whole program behind somebody else's firewall: first container, restart of the firewall, flush."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab import TIMEOUT, http_get, until

if TYPE_CHECKING:
    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"


def test_a_published_port_answers_behind_iptables_at_once(ctrport: Cli, watcher: Watcher, lab: Lab):
    """From the first container on, again after the firewall was loaded anew, and without a trace in the end."""
    lab.host.run("iptables-nft", "-P", "FORWARD", "DROP")
    before = lab.host.run("nft", "--stateless", "list", "table", "ip", "filter").stdout
    with ctrport.container("-p", "8080:80"):
        until(lambda: http_get(lab.remote, HOST, 8080) == PAGE, what="the page")
        with ctrport.container("-p", "8081:80"):
            until(lambda: http_get(lab.remote, HOST, 8081) == PAGE, what="the second page")
        lab.host.run("iptables-nft", "-F")
        until(lambda: "our part was missing in iptables-nft" in watcher.log, within=10, what="the repair")
        assert http_get(lab.remote, HOST, 8080) == PAGE
    assert watcher.log.count("chain CTRPORT-FORWARD lets our packets through") == 2
    watcher.terminate()
    flushed = ctrport("flush", check=True).stdout
    assert "removed chain CTRPORT-FORWARD from iptables-nft table filter, chain FORWARD" in flushed
    assert lab.host.run("nft", "--stateless", "list", "table", "ip", "filter").stdout == before


def test_a_native_drop_is_told_once(ctrport: Cli, watcher: Watcher, lab: Lab):
    """In the log with its cure, not at each pass; when the cure was applied, the port answers."""
    lab.host.nft("table inet mine { chain f { type filter hook forward priority 0; policy drop; }; }")
    with ctrport.container("-p", "8080:80"):
        for _ in range(3):
            ctrport("sync", check=True)
        told = [line for line in watcher.log.splitlines() if "table inet mine, chain f" in line]
        assert len(told) == 1
        assert http_get(lab.remote, HOST, 8080, timeout=0.3) is TIMEOUT
        for command in told[0].partition("mend it with: ")[2].split("; "):
            lab.host.run("sh", "-c", command)
        until(lambda: http_get(lab.remote, HOST, 8080) == PAGE, what="the page")
