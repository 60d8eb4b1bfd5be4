"""What somebody has done to our table, in words for the log. Data in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrport.firewall.ruleset import ADDRESS

if TYPE_CHECKING:
    from ctrport.firewall.table import Listing, Table, Transaction

GONE = f"table {ADDRESS} was gone"
SHOWN = 3  # of many alike


def rules(listing: Listing | None, table: Table) -> str:
    """Say which rules of a table are not as they should be."""
    if listing is None:
        return GONE
    wanted = table.listing().chains
    found = [f"chain {name} was gone" for name in wanted if name not in listing.chains]
    for name, comments in wanted.items():
        have = listing.chains.get(name, comments)
        missing = [comment for comment in comments if comment not in have]
        found += [f"chain {name} lacked the rule '{comment}'" for comment in missing]
        if have != comments and not missing:
            found.append(f"chain {name} had other rules too, or in another order")
    found += [f"chain {name} does not belong there" for name in listing.chains if name not in wanted]
    return _few(found) or f"a rule or a set of table {ADDRESS} was another one, or the table was switched off"


def elements(transaction: Transaction) -> str:
    """Say which elements were not as they should be, by what puts them right."""
    found = []
    for name in {**transaction.added, **transaction.deleted}:
        added, deleted = transaction.added.get(name, {}), transaction.deleted.get(name, {})
        found += [f"{name} had another {key}" if key in deleted else f"{name} lacked {key}" for key in added]
        found += [f"{name} had {key}, which nobody asked for" for key in deleted if key not in added]
    return _few(found)


def _few(found: list[str]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
