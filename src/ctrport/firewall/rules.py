"""The rules of our table as the kernel holds them: by their comments, and as a digest of all that they say.

Sets and maps are taken with them, without what they hold.

Read by netlink in less than a millisecond, however many elements the table has: libnftables reads every element
even for a terse listing, 0.2 s with 20,000 of them. The digest is over the kernel's own words, with handles and
without what changes by itself. So it tells a rule that was replaced in place, which keeps its handle (seen on Linux
6.18), and one that was deleted and made again with another anonymous set of the same name, which does not.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, NamedTuple

from ctrport.firewall.ruleset import FAMILY, TABLE
from ctrport.host.netlink import attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.host.netlink import Netlink

# include/uapi/linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES with NFT_MSG_GETTABLE, _GETCHAIN, _GETRULE, _GETSET
GET_TABLE, GET_CHAIN, GET_RULE, GET_SET = 10 << 8 | 1, 10 << 8 | 4, 10 << 8 | 7, 10 << 8 | 10
TABLE_NAME, TABLE_SAID = 1, (2, 4)  # flags, handle
CHAIN_TABLE, CHAIN_NAME, CHAIN_POLICY = 1, 3, 5
CHAIN_SAID = (2, 3, 4, 5, 7, 10)  # handle, name, hook with priority, policy, type, flags
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_USERDATA = 1, 2, 4, 7
RULE_SAID = (2, 3, 7)  # chain, handle, comment
SET_TABLE, SET_NAME, SET_FLAGS = 1, 2, 3
SET_SAID = (2, 3, 4, 5, 6, 7)  # name, flags, type and length of key and data
ANONYMOUS = 1  # NFT_SET_ANONYMOUS: it belongs to a rule
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
COUNTER = b"counter\0"  # an expression whose data changes by itself
COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT, NFTNL_UDATA_SET_ELEM_COMMENT of libnftnl
ACCEPT = b"\0\0\0\1"
GENERIC = struct.pack("!BBH", {"inet": 1}[FAMILY], 0, 0)  # nfgenmsg with NFPROTO_INET


class Rules(NamedTuple):
    """Chains, each with its rules' comments in order; names of sets and maps; the digest of all that they say."""

    chains: dict[str, tuple[str, ...]]
    sets: tuple[str, ...]
    digest: str


def read(netlink: Netlink) -> Rules:
    """Read our table's. OSError as the kernel says: ENOENT when there is no such table.

    The policy of a chain can be changed in place, so it is given as a rule of its own where it is not `accept`.
    """
    name = f"{TABLE}\0".encode()
    digest = hashlib.sha256()
    chains: dict[str, list[str]] = {}
    table = _fields(netlink.ask(GET_TABLE, GENERIC + attribute(TABLE_NAME, name)))
    _say(digest, table, TABLE_SAID)
    for message in netlink.dump(GET_CHAIN, GENERIC):
        fields = _fields(message)
        if fields[CHAIN_TABLE] == name:
            dropping = fields.get(CHAIN_POLICY, ACCEPT) != ACCEPT
            chains[text(fields[CHAIN_NAME])] = ["policy drop"] if dropping else []
            _say(digest, fields, CHAIN_SAID)
    for message in netlink.dump(GET_RULE, GENERIC + attribute(RULE_TABLE, name)):
        fields = _fields(message)
        if fields[RULE_TABLE] == name:
            chains.setdefault(text(fields[RULE_CHAIN]), []).append(comment(fields.get(RULE_USERDATA, b"")))
            _say(digest, fields, RULE_SAID)
            for part in _expressions(fields.get(RULE_EXPRESSIONS, b"")):
                digest.update(part)
    sets = []
    for message in netlink.dump(GET_SET, GENERIC + attribute(SET_TABLE, name)):
        fields = _fields(message)
        if not fields.get(SET_FLAGS, b"\0")[-1] & ANONYMOUS:
            sets.append(text(fields[SET_NAME]))
        _say(digest, fields, SET_SAID)
    return Rules({chain: tuple(rules) for chain, rules in chains.items()}, tuple(sets), digest.hexdigest())


def comment(userdata: bytes) -> str:
    """Find a comment among libnftnl's own attributes: a byte for the kind, one for the length, the content."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == COMMENT:
            return text(userdata[at + 2 : at + 2 + length])
        at += 2 + length
    return ""


def text(raw: bytes) -> str:
    """Give a string that the kernel ends with a zero."""
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _fields(message: bytes) -> dict[int, bytes]:
    return dict(attributes(message, len(GENERIC)))


def _say(digest: hashlib._Hash, fields: dict[int, bytes], kinds: tuple[int, ...]) -> None:
    """Take some attributes into a digest so that what is missing differs from what is empty."""
    for kind in kinds:
        content = fields.get(kind)
        digest.update(f"{kind}:{-1 if content is None else len(content)}:".encode() + (content or b""))


def _expressions(listed: bytes) -> Iterator[bytes]:
    """Give name and data of each expression of a rule, of a counter its name alone."""
    for _, one in attributes(listed):
        parts = dict(attributes(one))
        name = parts.get(EXPRESSION_NAME, b"")
        yield name
        if name != COUNTER:
            yield parts.get(EXPRESSION_DATA, b"")
