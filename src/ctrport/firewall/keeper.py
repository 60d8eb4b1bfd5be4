"""What keeps connections translated while our table is away for a moment: a table that nobody else can flush.

Translation of connections that exist is done by hooks that the kernel has as long as there is any nat chain. When
somebody flushes all rules the hooks go with the last chain, and until the table is written again packets of open
connections arrive untranslated: the host answers those with a reset. A table with an owner (Linux 5.12) is passed
over by `flush ruleset` and lives as long as its owner's socket. So this one holds the hooks and translates nothing:
one nat chain, and one rule that asks for a connection's state, as conntrack has hooks of the same kind.

Without it, on an older kernel, connections that are silent in that moment survive all the same.
"""

from __future__ import annotations

import logging

from ctrport.errors import CtrportError
from ctrport.firewall.nft import LibNft

log = logging.getLogger(__name__)
ADDRESS = "inet ctrport-keep"
SCRIPT = f"""table {ADDRESS} {{
	flags owner
	chain keep {{
		type nat hook postrouting priority 300; policy accept;
		ct state invalid return comment "ctrport: keeps open connections translated when rules are flushed"
	}}
}}
"""


def hold() -> LibNft | None:
    """Make the table; it is there as long as what is given, the library's handle, which has no other use.

    None where the kernel has no such tables, or another watcher on this host has made it.
    """
    try:
        owner = LibNft()
        owner.apply(SCRIPT)
    except CtrportError as error:
        log.info("connections with data at the moment of a flush may be cut: %s", error.message)
        return None
    return owner
