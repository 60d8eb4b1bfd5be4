"""What the kernel's refusal of a question about its rules means in words."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ctrport.errors import HostError, KernelError

if TYPE_CHECKING:
    from ctrport.errors import CtrportError

PRIVILEGE = "run as root (CAP_NET_ADMIN)"
MODULES = (
    "this kernel lacks nf_tables or one of its parts: load nf_tables, nft_chain_nat, nft_fib_inet, "
    "nft_ct, nft_masq (kernel 5.7 or newer)"
)
# nfnetlink's answers for a subsystem that is not there (net/netfilter/nfnetlink.c), and netlink's for itself.
LACKING = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)


def refused(what: str, error: OSError) -> CtrportError:
    """Give the error to raise; `what` completes the sentence "the kernel refused to ...".

    HostError where this host, or this user, will never be answered; else KernelError.
    """
    told = f"the kernel refused to {what}: {error.strerror or error}"
    if error.errno == errno.EPERM:
        return HostError(told, hint=PRIVILEGE)
    if error.errno in LACKING:
        return HostError(told, hint=MODULES)
    return KernelError(told)
