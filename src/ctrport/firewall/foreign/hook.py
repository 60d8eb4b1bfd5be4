"""The operator's own rules about published ports: Docker's DOCKER-USER, as an nftables table of his own.

`inet ctrport-user` is made once, with an empty chain `published` for the operator to fill. It is seen before any
accept of ours. Only packets that we translated come by, in the direction of the client that opened the
connection: so `ip saddr` is the client, and what is dropped there is dropped at once, also in connections that
exist. The chain `forward` with its one rule is ours; everything else in the table is never written, flushed or
put in another order by us, and `flush` takes the table away only when the operator left nothing in it.
"""

from __future__ import annotations

import json
from typing import Any

from ctrport.errors import KernelError
from ctrport.firewall.foreign import programs

ADDRESS = "inet ctrport-user"
FAMILY, TABLE = ADDRESS.split()
FORWARD, PUBLISHED = "forward", "published"
PRIORITY = "filter - 10"  # before everybody at the standard priority, and before firewalld
COMMENT = "ctrport: published ports, mark {mark:#x}"


def script(mark: int) -> list[str]:
    """Give the lines that make the table; what is there already stays."""
    ours = f"ct mark and {mark:#x} == {mark:#x} ct status dnat ct direction original"
    return [
        f"add table {ADDRESS}",
        f"add chain {ADDRESS} {PUBLISHED}",
        f"add chain {ADDRESS} {FORWARD} {{ type filter hook forward priority {PRIORITY}; policy accept; }}",
        f"flush chain {ADDRESS} {FORWARD}",
        f'add rule {ADDRESS} {FORWARD} {ours} jump {PUBLISHED} comment "{COMMENT.format(mark=mark)}"',
    ]


def ensure(mark: int) -> bool:
    """Make the table, or the part of it that is ours; says whether anything was missing."""
    listed = _listed("chain", FAMILY, TABLE, FORWARD)
    comments = [item["rule"].get("comment", "") for item in listed if "rule" in item]
    if comments == [COMMENT.format(mark=mark)]:
        return False
    programs.run("nft", "-f", "-", script="\n".join([*script(mark), ""]))
    return True


def remove() -> tuple[bool, bool]:
    """Take the table away unless the operator has something in it; says if it was there, and if it went."""
    listed = _listed("table", FAMILY, TABLE)
    if not listed:
        return False, False
    if not all(_is_ours(item) for item in listed):
        return True, False
    programs.run("nft", "delete", "table", FAMILY, TABLE)
    return True, True


def _is_ours(item: dict[str, Any]) -> bool:
    if "chain" in item:
        return item["chain"]["name"] in (FORWARD, PUBLISHED)
    if "rule" in item:
        return str(item["rule"].get("comment", "")).startswith(COMMENT.partition(",")[0])
    return bool({"table", "metainfo"} & set(item))


def _listed(*what: str) -> list[dict[str, Any]]:
    try:
        document = json.loads(programs.run("nft", "-j", "list", *what))
    except KernelError as error:
        if "No such file or directory" in error.message:
            return []
        raise
    return list(document["nftables"])
