"""What the kernel held right after we wrote the rules: how a rule that changed under its own comment is noticed.

What we wrote cannot be compared with what the kernel makes of it. But what it holds can be, with what it held
before. After an upgrade of ctrport the record does not match, and the table is written anew: the safe side.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ctrport.firewall.table import Listing, Table

RECORD = "rules.json"


Entry = dict[str, str]


def intact(state: Path, table: Table, listing: Listing | None) -> bool:
    """Say whether the rules in the kernel are those that were written last, and those that should be."""
    return fits(read(state), table, listing)


def fits(kept: Entry | None, table: Table, listing: Listing | None) -> bool:
    """Say the same by an entry that was kept."""
    return listing is not None and listing.chains == table.listing().chains and kept == entry(table, listing)


def read(state: Path) -> Entry | None:
    """Give the entry on disk, None when there is none that can be read."""
    try:
        return dict(json.loads((state / RECORD).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write(state: Path, kept: Entry) -> None:
    """Keep an entry on disk. OSError when that fails: the disk is full, or the directory has gone."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = state / f".{RECORD}"
    draft.write_text(json.dumps(kept) + "\n", "utf-8")
    draft.rename(state / RECORD)


def entry(table: Table, listing: Listing) -> Entry:
    """Give what is kept of a table that was just written, and of what the kernel then lists of it."""
    return {"written": table.digest(), "listed": listing.fingerprint}
