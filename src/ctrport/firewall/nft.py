"""The kernel's nftables, through libnftables in this process: no `nft` process, 60-100 microseconds a change.

The only module that loads the library, and the only one that reads its error text. A libnftables context belongs
to the network namespace of the thread that made it. Only our own table is ever listed: an old library can crash
on sets that a newer one made in somebody else's table (kubernetes#136786).
"""

from __future__ import annotations

import hashlib
import json
import logging
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Protocol

from ctrport.errors import HostError, KernelError
from ctrport.firewall.ruleset import ADDRESS, SETS, TABLE
from ctrport.firewall.table import Element, Listing

if TYPE_CHECKING:
    from ctrport.firewall.table import Count, Counts, Elements

log = logging.getLogger(__name__)
MISSING = "No such file or directory"  # libnftables' words for ENOENT
PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp"}  # nft prints numbers where /etc/protocols is missing
TYPES = {s.name: (s.key_type.split(" . "), s.value_type.split(" . ")) for s in SETS}


class Nft(Protocol):
    """What the rest of the program wants of nftables; tests put a fake here."""

    def apply(self, script: str) -> None:
        """Run a script as one transaction; KernelError when it is refused, and then nothing has changed."""

    def listing(self, *, elements: bool = True) -> Listing | None:
        """Give our table as the kernel holds it, if need be without elements; None when there is none."""


class LibNft:
    """libnftables by Debian's python3-nftables."""

    def __init__(self) -> None:
        try:
            import nftables  # noqa: PLC0415 - Debian's package, not on PyPI: its absence is told in our words
        except ImportError as error:
            raise HostError(
                f"python3-nftables is not installed for this Python: {error}",
                hint="apt-get install python3-nftables, and make the virtual environment from /usr/bin/python3 "
                "with --system-site-packages",
            ) from error
        try:
            self._lib = nftables.Nftables()
        except OSError as error:
            raise HostError(
                f"libnftables could not be loaded: {error}", hint="apt-get install libnftables1"
            ) from error

    def apply(self, script: str) -> None:
        log.debug("nft -f - <<'EOF'\n%sEOF", script)
        self._lib.set_json_output(False)
        code, _, error = self._lib.cmd(script)
        if code != 0:
            raise _error("change the table", error)

    def refusal(self, script: str) -> str:
        """Have the kernel look at a script and apply nothing of it, as `nft --check`; "" when it would take it."""
        self._lib.set_json_output(False)
        self._lib.set_dry_run(True)
        try:
            code, _, error = self._lib.cmd(script)
        finally:
            self._lib.set_dry_run(False)
        return "" if code == 0 else _error("take", error).message

    def listing(self, *, elements: bool = True) -> Listing | None:
        self._lib.set_json_output(True)
        self._lib.set_terse_output(not elements)
        code, output, error = self._lib.cmd(f"list table {ADDRESS}")
        if code != 0:
            if MISSING in error:
                return None
            raise _error("list the table", error)
        return read_listing(json.loads(output))


def read_listing(document: dict[str, Any]) -> Listing:
    """Give what a JSON listing of our table holds: chains by their rules' comments, elements in our spelling.

    A base chain whose hook, priority or policy somebody changed has lost our first rule's comment only if they
    made it anew, which they must: nftables cannot change hook or priority in place. The policy can be changed
    in place, so it is read as a rule of its own when it is not `accept`.
    """
    chains: dict[str, list[str]] = {}
    elements: Elements = {}
    counts: Counts = {}
    for item in document["nftables"]:
        if "chain" in item:
            policy = item["chain"].get("policy", "accept")
            chains.setdefault(item["chain"]["name"], [] if policy == "accept" else [f"policy {policy}"])
        elif "rule" in item:
            chains.setdefault(item["rule"]["chain"], []).append(item["rule"].get("comment", ""))
        elif found := item.get("map") or item.get("set"):
            name = found["name"]
            elements[name] = {}
            for raw in found.get("elem", ()):
                element, count = _element(name, raw)
                elements[name][element.key] = element
                if count is not None:
                    counts[name, element] = count
    return Listing(
        chains={name: tuple(rules) for name, rules in chains.items()},
        elements=elements,
        fingerprint=_fingerprint(document["nftables"]),
        counts=counts,
    )


def _fingerprint(items: list[dict[str, Any]]) -> str:
    """Give a digest of the table's flags, chains and rules without what changes by itself: handles and counts."""

    def still(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: None if k == "counter" else still(v) for k, v in value.items() if k != "handle"}
        return [still(v) for v in value] if isinstance(value, list) else value

    rules = [still(item) for item in items if item.keys() & {"table", "chain", "rule"}]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _element(name: str, raw: Any) -> tuple[Element, Count | None]:
    key_types, value_types = TYPES.get(name, ([], []))
    raw_key, raw_value = raw if isinstance(raw, list) else (raw, None)
    comment, count = "", None
    if isinstance(raw_key, dict) and "elem" in raw_key:
        comment = raw_key["elem"].get("comment", "")
        if counter := raw_key["elem"].get("counter"):
            count = counter["packets"], counter["bytes"]
        raw_key = raw_key["elem"]["val"]
    value = "" if raw_value is None else _joined(raw_value, value_types)
    return Element(_joined(raw_key, key_types), value, comment), count


def _joined(raw: Any, types: list[str]) -> str:
    parts = raw["concat"] if isinstance(raw, dict) and "concat" in raw else [raw]
    types = types if len(types) == len(parts) else [""] * len(parts)
    return " . ".join(_spelled(str(part), kind) for part, kind in zip(parts, types, strict=True))


def _spelled(text: str, kind: str) -> str:
    if kind == "ifname":
        return f'"{text}"'
    if kind == "ipv6_addr":
        return str(IPv6Address(text))  # the C library writes ::ffff:192.0.2.1 where Python does not
    return PROTOCOLS.get(text, text) if kind == "inet_proto" else text


def _error(what: str, text: str) -> KernelError | HostError:
    first = next((line.strip() for line in text.splitlines() if "rror" in line), text.strip())
    message = f"nftables refused to {what} {TABLE}: {first}"
    if "Operation not permitted" in text:
        return HostError(message, hint="run as root (CAP_NET_ADMIN)")
    if "Protocol not supported" in text or "not supported" in text or "cache initialization failed" in text:
        return HostError(
            message,
            hint="this kernel lacks nf_tables or one of its parts: load nf_tables, nft_chain_nat, nft_fib_inet, "
            "nft_ct, nft_masq (kernel 5.7 or newer)",
        )
    return KernelError(message, hint="run with -v to see the script")
