"""Looking without touching: what a writer would do, beside what the kernel holds.

Where a watcher runs it is asked, and what a writer consists of is not even imported.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctrport.control import connect

if TYPE_CHECKING:
    from ctrport.config import Settings
    from ctrport.containerd.client import Client
    from ctrport.firewall.nft import Nft
    from ctrport.firewall.table import Listing, Table
    from ctrport.reconcile import Reconciler

UNAPPLIED = "not in the kernel: no watcher runs, ctrport sync applies it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Where the kernel differs from what should be; each entry is a line of nft."""

    missing: tuple[str, ...]
    surplus: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a writer would do now, beside what the kernel has."""

    reconciler: Reconciler
    table: Table
    listing: Listing | None
    drift: Drift


async def bindings(settings: Settings, client: Client) -> list[dict[str, Any]]:
    """Give every container that asks for ports, with its mappings: by the watcher, else by looking."""
    async with connect(settings) as link:
        if link is not None:
            return list((await link.call("bindings"))["containers"])
    if settings.config_error is not None:
        raise settings.config_error
    return await _looked_up(settings, client)


async def _looked_up(settings: Settings, client: Client) -> list[dict[str, Any]]:
    from ctrport.firewall import ruleset  # noqa: PLC0415 - see the module's docstring
    from ctrport.firewall.nft import LibNft  # noqa: PLC0415
    from ctrport.model.bindings import State  # noqa: PLC0415
    from ctrport.reconcile import Reconciler  # noqa: PLC0415
    from ctrport.service import Service  # noqa: PLC0415

    nft = LibNft()
    reconciler = Reconciler(settings.without_watcher(), client, nft)
    await reconciler.resync(apply=False)
    listing = await asyncio.to_thread(nft.listing)
    held = listing.elements if listing else {}
    service = Service(client, reconciler)
    found = list((await service.bindings())["containers"])
    for entry, key in zip(found, sorted(reconciler.snapshot.workloads), strict=True):
        for mapping, binding in zip(entry["mappings"], reconciler.bindings(key), strict=True):
            elements = ruleset.binding_elements(binding)
            if any(held.get(name, {}).get(element.key) != element for name, element in elements):
                mapping.update(state=str(State.WAITING), reason=UNAPPLIED)
    return found


async def configuration(settings: Settings) -> dict[str, Any] | None:
    """Give the watcher's configuration as `Service.configuration` does, None where no watcher runs."""
    async with connect(settings) as link:
        return None if link is None else await link.call("configuration")


async def tables(settings: Settings, client: Client) -> tuple[Table, Drift]:
    """Give the table that should be, and how the kernel differs from it."""
    from ctrport.firewall.nft import LibNft  # noqa: PLC0415

    found = await look(settings, client, LibNft())
    return found.table, found.drift


async def look(settings: Settings, client: Client, nft: Nft) -> Look:
    """Make the pass that a writer would make, and apply nothing."""
    from ctrport.firewall import record  # noqa: PLC0415
    from ctrport.reconcile import Reconciler  # noqa: PLC0415

    reconciler = Reconciler(settings, client, nft)
    await reconciler.resync(apply=False)
    table = reconciler.table()
    listing = await asyncio.to_thread(nft.listing)
    found = drift(table, listing)
    if not found and not record.intact(settings.state, table, listing):
        found = Drift(missing=("the rules as they were written last: their text has changed",), surplus=())
    return Look(reconciler=reconciler, table=table, listing=listing, drift=found)


def drift(table: Table, listing: Listing | None) -> Drift:
    """Compare rules by their comments and elements in full."""
    from ctrport.firewall.table import difference  # noqa: PLC0415

    if listing is None:
        return Drift(missing=(f"table {table.address}",), surplus=())
    missing, surplus = [], []
    wanted = table.listing()
    for name in {**wanted.chains, **listing.chains}:
        want, have = wanted.chains.get(name, ()), listing.chains.get(name, ())
        missing += [f"chain {name}: rule {rule!r}" for rule in (Counter(want) - Counter(have)).elements()]
        surplus += [f"chain {name}: rule {rule!r}" for rule in (Counter(have) - Counter(want)).elements()]
        if name not in listing.chains:
            missing.append(f"chain {name}")
        elif name not in wanted.chains:
            surplus.append(f"chain {name}")
        elif want != have and sorted(want) == sorted(have):
            surplus.append(f"chain {name}: rules in another order")
    surplus += [f"set {name}" for name in listing.elements if name not in wanted.elements]
    changes = difference(listing.elements, table.elements, table.address)
    for lines, elements in ((surplus, changes.deleted), (missing, changes.added)):
        lines += [f"{name}: {element}" for name, found in elements.items() for element in found.values()]
    return Drift(missing=tuple(missing), surplus=tuple(surplus))
