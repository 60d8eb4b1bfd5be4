"""From a few changed bindings to the elements that change with them: a refresh does not look at all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrport.firewall import ruleset
from ctrport.firewall.table import Transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrport.firewall.ruleset import Links
    from ctrport.firewall.table import Element, Elements
    from ctrport.model.bindings import Change


def of_changes(elements: Elements, changes: Sequence[Change], links: Links) -> Transaction:
    """Give the element changes of a few bindings, and take them into what the kernel is to hold."""
    touched: dict[tuple[str, str], Element | None] = {}
    for change in changes:
        touched |= {(name, e.key): None for name, e in ruleset.binding_elements(change.old)}
    for change in changes:
        touched |= {(name, e.key): e for name, e in ruleset.binding_elements(change.new)}
    for name, found in links.elements().items():
        touched |= {(name, key): None for key in elements[name]}
        touched |= {(name, key): e for key, e in found.items()}
    transaction = Transaction(ruleset.ADDRESS)
    for (name, key), new in touched.items():
        old = elements[name].pop(key, None)
        if new is not None:
            elements[name][key] = new
        if old != new:
            if old is not None:
                transaction.delete(name, old)
            if new is not None:
                transaction.add(name, new)
    return transaction
