"""What the kernel listed right after we wrote the rules: how a rule that changed under its own comment is noticed.

nft's listing of a rule differs between versions, so what we wrote cannot be compared with what is listed. But two
listings by the same library can. After an upgrade of the library or of ctrport the record does not match, and the
table is written anew: the safe side.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ctrport.firewall.table import Listing, Table

RECORD = "rules.json"


def intact(state: Path, table: Table, listing: Listing | None) -> bool:
    """Say whether the rules in the kernel are those that were written last, and those that should be."""
    if listing is None or listing.chains != table.listing().chains:
        return False
    try:
        record = json.loads((state / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record == _entry(table, listing))


def write(state: Path, table: Table, listing: Listing) -> None:
    """Keep what the kernel lists of a table that was just written."""
    draft = state / f".{RECORD}"
    draft.write_text(json.dumps(_entry(table, listing)) + "\n", "utf-8")
    draft.rename(state / RECORD)


def _entry(table: Table, listing: Listing) -> dict[str, str]:
    return {"written": table.digest(), "listed": listing.fingerprint}
