"""From changed bindings to changed elements: what a pass over a few containers writes.

Knows what the kernel is to hold, as the last pass left it. Must not know how a transaction is applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrport.firewall import ruleset
from ctrport.firewall.table import Transaction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrport.firewall.ruleset import Links
    from ctrport.firewall.table import Element, Elements
    from ctrport.model.bindings import Change


def transaction(elements: Elements, changes: Iterable[Change], links: Links) -> Transaction:
    """Give the element changes of a few bindings, and take them into `elements`."""
    changes = tuple(changes)
    touched: dict[tuple[str, str], Element | None] = {}
    for change in changes:
        touched |= {(name, e.key): None for name, e in ruleset.binding_elements(change.old)}
    for change in changes:
        touched |= {(name, e.key): e for name, e in ruleset.binding_elements(change.new)}
    for name, wanted in links.elements().items():
        touched |= {(name, key): None for key in elements[name]}
        touched |= {(name, key): e for key, e in wanted.items()}
    found = Transaction(ruleset.ADDRESS)
    for (name, key), new in touched.items():
        old = elements[name].pop(key, None)
        if new is not None:
            elements[name][key] = new
        if old != new:
            if old is not None:
                found.delete(name, old)
            if new is not None:
                found.add(name, new)
    return found
