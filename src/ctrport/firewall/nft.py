"""The kernel's nftables: written by libnftables in this process, 60-100 microseconds a change; read by netlink.

The only module that loads the library, and the only one that reads its error text. A libnftables context belongs
to the network namespace of the thread that made it, and so does the socket that we read by. The library is never
asked for a listing: an old one can crash on sets that a newer one made in somebody else's table
(kubernetes#136786), and with tens of thousands of elements it takes seconds.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from ctrport.errors import HostError, KernelError
from ctrport.firewall import contents
from ctrport.firewall.refused import MODULES, PRIVILEGE
from ctrport.firewall.ruleset import TABLE
from ctrport.host.netlink import Netlink

if TYPE_CHECKING:
    from ctrport.firewall.table import Listing

log = logging.getLogger(__name__)
NETLINK_NETFILTER = 12


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
        # It stays open: to close one that nf_tables serves waits until what was deleted just before is freed.
        self._netlink = Netlink(NETLINK_NETFILTER)

    def apply(self, script: str) -> None:
        log.debug("nft -f - <<'EOF'\n%sEOF", script)
        code, _, error = self._lib.cmd(script)
        if code != 0:
            raise _error("change the table", error)

    def refusal(self, script: str) -> str:
        """Have the kernel look at a script and apply nothing of it, as `nft --check`; "" when it would take it."""
        self._lib.set_dry_run(True)
        try:
            code, _, error = self._lib.cmd(script)
        finally:
            self._lib.set_dry_run(False)
        return "" if code == 0 else _error("take", error).message

    def listing(self, *, elements: bool = True) -> Listing | None:
        return contents.read(self._netlink, elements=elements)


def _error(what: str, text: str) -> KernelError | HostError:
    first = next((line.strip() for line in text.splitlines() if "rror" in line), text.strip())
    message = f"nftables refused to {what} {TABLE}: {first}"
    if "Operation not permitted" in text:
        return HostError(message, hint=PRIVILEGE)
    if "Protocol not supported" in text or "not supported" in text or "cache initialization failed" in text:
        return HostError(message, hint=MODULES)
    return KernelError(message, hint="run with -v to see the script")
