"""Taking every trace of ours out of the kernel; what containerd and the disk know stays."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ctrport.errors import ConflictError
from ctrport.firewall import conntrack, nftrace
from ctrport.firewall.foreign import adjust
from ctrport.firewall.nft import LibNft
from ctrport.firewall.ruleset import ADDRESS
from ctrport.host import lock, sysctl, sysctl_file
from ctrport.network import leases, links, networks

if TYPE_CHECKING:
    from ctrport.config import Settings


def flush(settings: Settings) -> list[str]:
    """Remove rules, bridges and veth pairs and put settings back; gives a line for each thing that was there.

    Containers go on without a network; `ctrport sync`, or a watcher that starts, connects them again.
    ConflictError while a watcher runs: it would bring everything back.
    """
    held = lock.try_acquire(settings.state, lock.WRITER)
    if held is None:
        raise ConflictError(
            "a watcher runs and would bring everything back (or another command is at work)",
            hint="systemctl stop ctrport",
        )
    try:
        done = []
        nft = LibNft()
        if nft.listing() is not None:
            nft.apply(f"delete table {ADDRESS}\n")
            done.append(f"removed table {ADDRESS}")
        if nftrace.remove(nft):
            done.append(f"removed table {nftrace.ADDRESS}")
        bridges = [network.bridge for network in networks.load_all(settings.root)]
        done += adjust.remove(settings.config, bridges)
        if flows := conntrack.forget_stale({}, settings.config.mark):
            done.append(f"deleted {flows} UDP flows to containers")
        there = {name for _, name in socket.if_nameindex()}
        ours = [links.host_interface(lease.netns) for lease in leases.every(settings.root)]
        ours += bridges
        done += [f"removed interface {name}" for name in ours if name in there and links.remove_link(name)]
        done += sysctl.restore(settings.state)
        directory = sysctl_file.place(settings.config)
        if directory is not None and sysctl_file.remove(directory):
            done.append(f"removed {directory / sysctl_file.NAME}")
        return done
    finally:
        lock.release(held)
