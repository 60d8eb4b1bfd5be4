"""The ledger and the kernel: a port is given out once its sockets could be bound.

The ledger judges by a list of listeners that is a moment old, and knows nothing of programs that have bound a
port and do not listen yet. `bind` decides for good, so what it refuses is told to the ledger, which decides again:
the request waits, or takes the next port of its pool.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ctrport.firewall import ruleset
from ctrport.host import facts
from ctrport.model.bindings import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ctrport.firewall.table import Listing
    from ctrport.host.relay import Relay
    from ctrport.host.reservation import Reservation
    from ctrport.model.bindings import Binding, Incumbent, Listener
    from ctrport.model.ledger import Ledger


def incumbents(listing: Listing | None) -> dict[Incumbent, set[int]]:
    """Give the mappings that the kernel serves, by what names them: read once, when a writer starts."""
    found: dict[Incumbent, set[int]] = {}
    for incumbent, port in ruleset.incumbents(listing.elements) if listing else ():
        found.setdefault(incumbent, set()).add(port)
    return found


def tell_listeners(
    ledger: Ledger, listeners: tuple[Listener, ...] | None = None, translations: Iterable[Listener] = ()
) -> None:
    """Tell the ledger who listens, by name where somebody stands in the way of a request, and who translates.

    Translations come first: Docker's says more than the name of the proxy that listens on the same port.
    """
    found = facts.listeners() if listeners is None else listeners
    names: dict[Listener, Listener] = {}
    if contested := ledger.contested(found):
        names = facts.named(contested)
    ledger.set_listeners([*translations, *(names.get(listener, listener) for listener in found)])


def _nothing() -> None:
    """Leave as it is what the ledger knows of others."""


class Claims:
    """The sockets that stand for given ports, of a writer that has any: they hold, and they relay [::1]."""

    def __init__(self, reservation: Reservation | None = None, relay: Relay | None = None) -> None:
        self._reservation = reservation
        self._relay = relay

    def settle(self, ledger: Ledger, before: Callable[[], None] = _nothing) -> list[Change]:
        """Let the ledger decide after `before`, and hold what it gave out; gives what changed in the end.

        Blocks. With a relay it must be in another thread than the relay's loop, which has its sockets.
        """
        before()
        changes = merged(ledger.settle())
        if self._relay is not None:  # first: nothing can be bound beside a socket that listens
            asyncio.run_coroutine_threadsafe(self._relay.end(changes), self._relay.loop).result()
        return self._hold(ledger, changes)

    def retry(self, bindings: Iterable[Binding]) -> None:
        """Hold what could not be held before, and let go what no binding wants."""
        if self._reservation is not None:
            self._reservation.retry(bindings)

    async def serve(self, bindings: Iterable[Binding | None], *, all_there_are: bool = False) -> None:
        """Relay [::1] for those of some bindings that want it, now that the kernel serves them."""
        if self._relay is not None:
            found = [binding for binding in bindings if binding is not None]
            await self._relay.serve(found, self._reservation, all_there_are=all_there_are)

    def _hold(self, ledger: Ledger, changes: list[Change]) -> list[Change]:
        if self._reservation is None:
            return changes
        latest = changes
        with ExitStack() as undo:
            undo.callback(lambda: ledger.give_back(changes))  # given out and not tried: the next attempt's first
            while holders := self._reservation.update(latest):
                for holder in holders:
                    ledger.take(holder)
                latest = merged(ledger.settle())
                changes = merged([*changes, *latest])
            undo.pop_all()
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
