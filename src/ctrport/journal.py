"""What a pass did, in lines for people: one for what came or went, a range at a time, and for each that did not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ctrport.model.bindings import State, socket_text
from ctrport.model.listing import runs, span
from ctrport.model.workload import title

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from ctrport.model.bindings import Binding, Change, Listener

log = logging.getLogger(__name__)


def log_changes(changes: Collection[Change]) -> None:
    """One line a mapping or range, once the kernel has it: what it was, what became of it, and why."""
    for first, last in _ranges(old for old, _ in changes):
        log.info("unpublished %s", _mapping_text(first, last))
    for first, last in _ranges(new for _, new in changes):
        log.info("published %s", _mapping_text(first, last))
    for _, new in changes:
        if new is not None and new.state is not State.ACTIVE:
            log.warning("%s %s: %s: %s", new.state, _owner_text(new), new.mapping, new.reason)


def _ranges(bindings: Iterable[Binding | None]) -> Iterator[tuple[Binding, Binding]]:
    """Give first and last of each run of published ports that differ by their numbers alone."""
    return runs((b for b in bindings if b is not None and b.state is State.ACTIVE), _follows)


def _follows(last: Binding, binding: Binding) -> bool:
    return (
        binding.host_port == (last.host_port or 0) + 1
        and binding.mapping.container_port == last.mapping.container_port + 1
        and binding.owner == last.owner
        and (binding.mapping.protocol, binding.mapping.host_ip) == (last.mapping.protocol, last.mapping.host_ip)
        and (binding.ipv4, binding.ipv6) == (last.ipv4, last.ipv6)
    )


def log_overlaps(overlaps: Iterable[tuple[Binding, Listener]], told: Collection[str]) -> list[str]:
    """One line for each mapping that somebody else's rules translate too, but for those told; gives all of them."""
    lines = [
        f"{_mapping_text(one, one)} is published, and {listener.reason()} too: the rule that stands first answers"
        for one, listener in overlaps
        if listener.translated
    ]
    for line in lines:
        if line not in told:
            log.warning("%s", line)
    return lines


def _mapping_text(first: Binding, last: Binding) -> str:
    inside, count = first.mapping.container_port, last.mapping.container_port - first.mapping.container_port + 1
    where = socket_text(first.mapping.host_ip, span(first.host_port or 0, count), first.mapping.protocol)
    targets = " and ".join(str(a) for a in (first.ipv4, first.ipv6) if a is not None)
    return f"{_owner_text(first)} {where} -> {targets} port {span(inside, count)}"


def _owner_text(binding: Binding) -> str:
    return title(binding.owner, binding.pod) if binding.pod else str(binding.owner)
