"""The ledger's decisions tried on the kernel: a port is given out once its sockets could be bound.

The ledger judges by a list of listeners that is a moment old, and knows nothing of programs that have bound a
port and do not listen yet. `bind` decides for good, so what it refuses is told to the ledger, which decides again:
the request waits, or takes the next port of its pool.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ctrport.host import facts
from ctrport.model.bindings import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrport.host.reservation import Reservation
    from ctrport.model.bindings import Listener
    from ctrport.model.ledger import Ledger


async def tell_listeners(
    ledger: Ledger, listeners: tuple[Listener, ...] | None = None, translations: Iterable[Listener] = ()
) -> None:
    """Tell the ledger who listens, by name where somebody stands in the way of a request, and who translates.

    Translations come first: Docker's says more than the name of the proxy that listens on the same port.
    """
    found = await asyncio.to_thread(facts.listeners) if listeners is None else listeners
    names: dict[Listener, Listener] = {}
    if contested := ledger.contested(found):
        names = await asyncio.to_thread(facts.named, contested)
    ledger.set_listeners([*translations, *(names.get(listener, listener) for listener in found)])


def settle(ledger: Ledger, reservation: Reservation | None) -> list[Change]:
    """Let the ledger decide, and hold what it gave out; gives what changed in the end."""
    changes = ledger.settle()
    if reservation is None:
        return changes
    latest = changes = merged(changes)
    while holders := reservation.update(latest):
        for holder in holders:
            ledger.take(holder)
        latest = merged(ledger.settle())
        changes = merged([*changes, *latest])
    return changes


def merged(changes: Iterable[Change]) -> list[Change]:
    """Give one change for each request that stands in several, from its first state to its last."""
    found: dict[object, Change] = {}
    for change in changes:
        binding = change.new or change.old
        if binding is None:
            continue
        name = (binding.owner, binding.mapping, binding.ipv4, binding.ipv6)
        found[name] = Change(found[name].old if name in found else change.old, change.new)
    return [change for change in found.values() if change.old != change.new]
