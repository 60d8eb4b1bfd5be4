# ruff: noqa: INP001, T201 - a script, which prints
"""Print how long a published port is away after what others do to the host: median and worst of several times.

    sudo .venv/bin/python scripts/repair_times.py [--times 20] [--mappings 10000] [--only reload]

A figure is the time from the last new connection that was answered before to the first one afterwards, as a machine
on the wire sees it; so it has the time in it that a probe takes, 2 to 5 ms, which is what a row without any loss
shows. An open connection carries data all the time. Nothing is asserted here but that it lives on.

The last row is of a reload without a watcher: so long firewalld itself lets no new connection through.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from contract import PUBLISHED, ContractSite
from firewalls import FirewalldEnabled, Iptables, UfwEnabled
from healing import ATTACKS, flush_iptables, outage, published, talking
from lab import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firewalls import Firewall
    from healing import Attack

CONFIG = "resync_seconds = 3600\nreserve_ports = false\n"
ALONE = "reload, no watcher"
PEACE = 2.2  # seconds between two times: no fight, and no rest after a look at other firewalls


def main() -> None:
    """Measure on one host after the other."""
    logging.disable()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--mappings", type=int, default=0, help="so many more of one container, over both families")
    parser.add_argument("--only", default="", help="rows with this word in their name")
    options = parser.parse_args()
    if options.mappings:
        last = 20000 + options.mappings - 1
        PUBLISHED["c2"] = f"20000-{last}:20000-{last}"
    print(f"{'':24} {'median':>9} {'worst':>9}   {options.times} times, {options.mappings} more mappings")
    rows: list[tuple[type[Firewall] | None, Mapping[str, Attack | None]]] = [
        (None, ATTACKS),
        (Iptables, {"iptables -F, -t nat -F": flush_iptables}),
        (UfwEnabled, {"ufw reload": None}),
        (FirewalldEnabled, {"firewalld reload": None, ALONE: None}),
    ]
    for firewall, attacks in rows:
        wanted = {name: attack for name, attack in attacks.items() if options.only in name}
        if wanted:
            measure(firewall, wanted, options.times)


def measure(firewall: type[Firewall] | None, attacks: Mapping[str, Attack | None], times: int) -> None:
    """Print a row for each attack on a host behind a firewall; the firewall's own reload where it is None."""
    with contextlib.ExitStack() as stack:
        first, second = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        site = stack.enter_context(ContractSite(first))
        site.configure(CONFIG)
        behind = firewall(site, second) if firewall else None
        site.start()
        for name, attack in attacks.items():
            found = []
            # A probe that was led astray by an attack before has its port so for two minutes, should it come again.
            site.host.run("conntrack", "-F")
            site.watcher.restart()
            until(lambda: published(site), within=30)
            if name == ALONE:
                site.watcher.terminate()
            with talking(site):
                for _ in range(times):
                    time.sleep(PEACE)
                    if attack is not None:
                        found.append(outage(site, attack))
                    elif behind is not None:
                        found.append(outage(site, lambda _: behind.load(), waits=False))
            print(f"{name:24} {1000 * statistics.median(found):6.0f} ms {1000 * max(found):6.0f} ms", flush=True)


if __name__ == "__main__":
    main()
