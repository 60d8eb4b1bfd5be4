"""Mappings that are not served, with what mends it, and programs of the host behind a published port."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.host import facts
from ctrport.model.bindings import State, is_wildcard, socket_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.doctor.survey import Survey
    from ctrport.model.bindings import Binding, Listener

SYNC = "ctrport sync"
PAGE = 'docs/firewalls.md, "is translated by"'


def check(survey: Survey) -> Iterator[Finding]:
    """Say which mappings wait or are refused, and why."""
    for binding in survey.bindings:
        if binding.state is not State.ACTIVE:
            yield unserved(binding)
    for key, problems in survey.problems.items():
        for problem in problems:
            yield Finding(
                code=Code.BAD_ANNOTATION,
                severity=Severity.SERIOUS,
                what=f"container {key} asks for a port that it does not get: {problem}",
                fix=(
                    shlex.join(
                        ["ctr", "-a", survey.settings.address, "-n", key.namespace, "containers", "info", key.id]
                    ),
                ),
            )
    found = {listener: binding for binding in survey.active for listener in _behind(survey, binding)}
    names = facts.named(found)
    for listener, binding in found.items():
        where = socket_text(listener.address, listener.port, listener.protocol)
        yield Finding(
            code=Code.LISTENER_SHADOWED,
            severity=Severity.WARNING,
            what=f"{names.get(listener, listener).holder} listens on {where} and hears nothing: "
            f"container {binding.owner} has the port",
            fix=(f"ss -lnp 'sport = :{listener.port}'",),
        )


def unserved(binding: Binding) -> Finding:
    """Say why a mapping waits or is refused."""
    waits = binding.state is State.WAITING
    verb = "waits" if waits else "is refused"
    return Finding(
        code=Code.PORT_CONFLICT if waits else Code.PORT_REFUSED,
        severity=Severity.SERIOUS,
        what=f"{binding.mapping} of container {binding.owner} {verb}: {binding.reason}",
        fix=_way_out(binding),
    )


def _way_out(binding: Binding) -> tuple[str, ...]:
    """Give what ends it, by the words that the ledger uses."""
    if container := re.search(r" held by container (\S+?)/(\S+)$", binding.reason):
        return (shlex.join(["ctrport", "-n", container[1], "stop", container[2]]), SYNC)
    if process := re.search(r"\(pid (\d+)\)$", binding.reason):
        return (f"ps -fp {process[1]}", f"kill {process[1]}", SYNC)
    if " is translated by " in binding.reason:
        return (f"# end what has it: see {PAGE}", SYNC)
    if binding.state is State.REFUSED:
        return ("ip -brief address", shlex.join(["ctrport", "-n", binding.owner.namespace, "ps", "-a"]))
    ports = binding.mapping.host_port_pool or (binding.host_port or 0,)
    return (f"ss -lnp 'sport >= :{ports[0]} and sport <= :{ports[-1]}'", SYNC)


def _behind(survey: Survey, binding: Binding) -> Iterable[Listener]:
    """Give the programs of the host that listen where a mapping takes all packets away from them."""
    families = {family for family, address in ((4, binding.ipv4), (6, binding.ipv6)) if address}
    host_ip = binding.mapping.host_ip
    for listener in survey.host.listeners:
        # What comes to [::1] no mapping takes.
        if (listener.port, listener.protocol) != (binding.host_port, binding.mapping.protocol) or (
            listener.address.version == 6 and listener.address.is_loopback  # noqa: PLR2004 - an IP version
        ):
            continue
        same = is_wildcard(host_ip) or is_wildcard(listener.address) or host_ip == listener.address
        if same and not families.isdisjoint(listener.families):
            yield listener
