"""Our table in the kernel, as one writer keeps it: what it is to hold, and the ways to get it there.

Knows when somebody else may have touched it. Rules are then known again by their handles, which costs little;
elements are compared by full passes only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ctrport.errors import KernelError
from ctrport.firewall import conntrack, handles, record, ruleset
from ctrport.firewall.generation import Generation
from ctrport.firewall.table import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrport.config import Settings
    from ctrport.firewall.nft import Nft
    from ctrport.firewall.ruleset import Links
    from ctrport.firewall.table import Element, Elements, Listing, Table
    from ctrport.model.bindings import Change

log = logging.getLogger(__name__)


class KernelTable:
    """The kernel's table of one writer. Its methods block."""

    def __init__(self, settings: Settings, nft: Nft) -> None:
        self.elements: Elements = {}  # what it is to hold
        self.generation = Generation()
        self._settings = settings
        self.nft = nft
        self._seen: object = None  # the foreign generation at the last look
        self._rules: handles.Handles | None = None  # as of then

    def listing(self, *, elements: bool = True) -> Listing | None:
        """Give the table as the kernel has it."""
        self._seen = self.generation.foreign()
        self._rules = handles.read(ruleset.ADDRESS)
        return self.nft.listing(elements=elements)

    def is_disturbed(self) -> bool:
        """Say whether the rules are others than at the last look; looks only if somebody has changed any rules."""
        if (now := self.generation.foreign()) == self._seen:
            return False
        self._seen = now
        return handles.read(ruleset.ADDRESS) != self._rules

    def difference(self, changes: list[Change], links: Links) -> Transaction:
        """Give the element changes of a few bindings, and take them into what the kernel is to hold."""
        touched: dict[tuple[str, str], Element | None] = {}
        for change in changes:
            touched |= {(name, e.key): None for name, e in ruleset.binding_elements(change.old)}
        for change in changes:
            touched |= {(name, e.key): e for name, e in ruleset.binding_elements(change.new)}
        for name, elements in links.elements().items():
            touched |= {(name, key): None for key in self.elements[name]}
            touched |= {(name, key): e for key, e in elements.items()}
        transaction = Transaction(ruleset.ADDRESS)
        for (name, key), new in touched.items():
            old = self.elements[name].pop(key, None)
            if new is not None:
                self.elements[name][key] = new
            if old != new:
                if old is not None:
                    transaction.delete(name, old)
                if new is not None:
                    transaction.add(name, new)
        return transaction

    def commit(self, transaction: Transaction | None, whole: Callable[[], Table]) -> None:
        """Apply a difference; where it does not apply, replace the table by the whole one."""
        if not transaction:
            return
        try:
            with self.generation.own():
                self.nft.apply(transaction.render())
        except KernelError as error:
            log.warning("a change did not apply, replacing the table: %s", error.message)
            self.rebuild(whole())
        else:
            self.forget_stale(conntrack.udp_ports(transaction.deleted, transaction.added))

    def rebuild(self, table: Table) -> None:
        """Replace the whole table in one transaction, and keep what the kernel then lists of it."""
        self.elements = table.elements
        with self.generation.own():
            self.nft.apply(table.rebuild())
        listing = self.listing(elements=False)
        if listing is not None:
            record.write(self._settings.state, table, listing)
        self.forget_stale(None)

    def forget_stale(self, ports: set[int] | None) -> None:
        """Delete UDP flows that the rules, as they now are, would send elsewhere; None for any port."""
        conntrack.forget_stale(self.elements, self._settings.config.mark, ports)
