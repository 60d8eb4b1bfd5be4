"""What a pass did, in lines for people: one for each mapping that came, went, waits or is refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ctrport.model.bindings import State, socket_text
from ctrport.model.workload import title

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ctrport.model.bindings import Binding, Change, Listener

log = logging.getLogger(__name__)


def log_changes(changes: Iterable[Change]) -> None:
    """One line a mapping, once the kernel has it: what it was, what became of it, and why."""
    for old, new in changes:
        if old is not None and old.state is State.ACTIVE:
            log.info("unpublished %s", _mapping_text(old))
        if new is not None and new.state is State.ACTIVE:
            log.info("published %s", _mapping_text(new))
        elif new is not None:
            log.warning("%s %s: %s: %s", new.state, _owner_text(new), new.mapping, new.reason)


def log_overlaps(overlaps: Iterable[tuple[Binding, Listener]], told: Collection[str]) -> list[str]:
    """One line for each mapping that somebody else's rules translate too, but for those told; gives all of them."""
    lines = [
        f"{_mapping_text(binding)} is published, and {listener.reason()} too: the rule that stands first answers"
        for binding, listener in overlaps
        if listener.translated
    ]
    for line in lines:
        if line not in told:
            log.warning("%s", line)
    return lines


def _mapping_text(binding: Binding) -> str:
    mapping = binding.mapping
    where = socket_text(mapping.host_ip, binding.host_port or 0, mapping.protocol)
    targets = " and ".join(str(a) for a in (binding.ipv4, binding.ipv6) if a is not None)
    return f"{_owner_text(binding)} {where} -> {targets} port {mapping.container_port}"


def _owner_text(binding: Binding) -> str:
    return title(binding.owner, binding.pod) if binding.pod else str(binding.owner)
