"""Our table in the kernel, as one writer keeps it: what it is to hold, and the ways to get it there.

Knows when somebody else may have touched it. Rules are then known again by a digest, which costs little to read;
elements are compared by full passes, and by a repair where the kernel has told that somebody touched the table.

Passes and repairs come from several threads; one of them is at work here at a time.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from ctrport.errors import KernelError
from ctrport.firewall import conntrack, damage, record, ruleset
from ctrport.firewall.generation import Generation
from ctrport.firewall.table import Transaction, difference

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ctrport.config import Settings
    from ctrport.firewall.monitor import Commit
    from ctrport.firewall.nft import Nft
    from ctrport.firewall.ruleset import Links
    from ctrport.firewall.table import Counts, Element, Elements, Listing, Table
    from ctrport.model.bindings import Change

log = logging.getLogger(__name__)
TRIES = 3  # to write rules and read them back before somebody else comes


def _no_pause(_: str) -> float:
    return 0.0


class KernelTable:
    """The kernel's table of one writer. Its methods block."""

    def __init__(self, settings: Settings, nft: Nft) -> None:
        self.elements: Elements = {}  # what it is to hold
        self.generation = Generation()
        self._settings = settings
        self.nft = nft
        self._at_work = threading.RLock()
        self._seen: object = None  # the foreign generation at the last look
        self._rules: str | None = None  # the digest as of then
        self._record: record.Entry | None = None
        self._counts: Counts = {}  # as of the last listing
        self._unwritten = False  # whether it was told that the record could not be written

    def listing(self) -> Listing | None:
        """Give the table as the kernel has it."""
        with self._at_work:
            self._seen = self.generation.foreign()
            listing = self.nft.listing()
            self._rules = _digest(listing)
            return listing

    def is_disturbed(self) -> bool:
        """Say whether the rules are others than at the last look; looks only if somebody has changed any rules."""
        with self._at_work:
            if (now := self.generation.foreign()) == self._seen:
                return False
            self._seen = now
            listing = self.nft.listing(elements=False)
            return _digest(listing) != self._rules

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
        with self._at_work:
            for (name, key), new in touched.items():
                old = self.elements[name].pop(key, None)
                if new is not None:
                    self.elements[name][key] = new
                if old != new:
                    if old is not None:
                        transaction.delete(name, old)
                        self._counts.pop((name, old), None)
                    if new is not None:
                        transaction.add(name, new)
        return transaction

    def commit(self, transaction: Transaction) -> None:
        """Apply a difference to what is to be held; where it does not apply, replace the table."""
        if not transaction:
            return
        with self._at_work:
            try:
                with self.generation.own():
                    self.nft.apply(transaction.render(self._counts))
            except KernelError as error:
                log.warning("a change did not apply, replacing the table: %s", error.message)
                self.rebuild(ruleset.whole(self.elements, self._settings.config.mark))
                return
        self.forget_stale(conntrack.udp_ports(transaction.deleted, transaction.added))

    def settle(self, table: Table, listing: Listing | None) -> bool:
        """Bring the kernel from what a full pass has listed to the whole table; says whether it was replaced."""
        with self._at_work:
            self.elements = table.elements
            if listing is not None:
                self._remember(listing.counts)
            if not self._is_intact(table, listing):
                if listing is not None:
                    log.warning("the rules in %s are not the ones to be: replacing the table", table.address)
                self.rebuild(table, listed=True)
                return True
            self._counts = {key: count for key, count in self._counts.items() if self._holds(*key)}
            if listing is not None:
                self.commit(difference(listing.elements, table.elements, table.address))
            return False

    def rebuild(self, table: Table, *, listed: bool = False) -> None:
        """Replace the whole table in one transaction; elements go on counting.

        Unless it was `listed` right before, what they have counted is looked up first.
        """
        with self._at_work:
            self.elements = table.elements
            if not listed and (found := self.nft.listing()) is not None:
                self._remember(found.counts)
            for _ in range(TRIES):
                with self.generation.own():
                    self.nft.apply(table.rebuild(self._counts))
                self._seen = self.generation.foreign()
                written = self.nft.listing(elements=False)
                self._rules = _digest(written)
                if written is not None and self.generation.is_last():  # nobody else has written since
                    self._record = record.entry(table, written)
                    self._keep_record()
                    break
        self.forget_stale(None)

    def repair(
        self, commits: Collection[Commit], pause: Callable[[str], float] = _no_pause
    ) -> tuple[str | None, float]:
        """Undo what others did to the table by some transactions.

        Gives what was wrong, None when nothing was, and the `pause` in seconds for which it was left as it is. What
        is to be is known, so nobody is asked: neither containerd nor the containers' namespaces.
        """
        with self._at_work:
            if not self.elements or all(self.generation.is_own(commit.generation) for commit in commits):
                return None, 0.0
            table = ruleset.whole(self.elements, self._settings.config.mark)
            found = self.nft.listing()
            if found is not None:
                self._remember(found.counts)
            transaction = None
            if found is not None and record.fits(self._record, table, found):
                transaction = difference(found.elements, table.elements, table.address)
                if not transaction:
                    return None, 0.0
            found = found or self.nft.listing(elements=False)
            what = damage.elements(transaction) if transaction else damage.rules(found, table)
            if seconds := pause(what):
                return what, seconds
            if transaction:
                self.commit(transaction)
            else:
                self.rebuild(table, listed=True)
            return what, 0.0

    def forget_stale(self, ports: set[int] | None) -> None:
        """Delete UDP flows that the rules, as they now are, would send elsewhere; None for any port."""
        conntrack.forget_stale(self.elements, self._settings.config.mark, ports)

    def _holds(self, name: str, element: Element) -> bool:
        return self.elements.get(name, {}).get(element.key) == element

    def _remember(self, counts: Counts) -> None:
        """Take in what elements have counted: never less than before, as whoever writes them anew begins at 0."""
        for (name, element), count in counts.items():
            mine = self.elements.get(name, {}).get(element.key)
            if mine == element and count != (0, 0):  # and keep ours, not the listing's equal one
                self._counts[name, mine] = max(count, self._counts.get((name, mine), count))

    def _is_intact(self, table: Table, listing: Listing | None) -> bool:
        """Say whether listed rules are those written last and those to be, by the record on disk or in memory."""
        kept = record.read(self._settings.state)
        if self._record is not None and record.fits(self._record, table, listing):
            if kept != self._record:
                self._keep_record()
            return True
        if record.fits(kept, table, listing):
            self._record = kept
            return True
        return False

    def _keep_record(self) -> None:
        """Write the record. Without it the next writer replaces the table once, so a full disk is only told."""
        if self._record is None:
            return
        try:
            record.write(self._settings.state, self._record)
        except OSError as error:
            if not self._unwritten:
                log.warning("cannot keep the record of the rules in %s: %s", self._settings.state, error.strerror)
            self._unwritten = True
        else:
            self._unwritten = False


def _digest(listing: Listing | None) -> str | None:
    return listing.fingerprint if listing is not None else None
