"""Our table in the kernel beside what it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.firewall import ruleset
from ctrport.model.bindings import State
from ctrport.model.workload import Key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.doctor.survey import Survey

SHOWN = 5  # differences


def check(survey: Survey) -> Iterator[Finding]:
    """Say how the kernel differs from what should be published."""
    look = survey.look
    if look is None or survey.nft is None or survey.nft_error is not None:
        return
    if look.listing is None and not survey.bindings and not survey.used:
        return  # nothing was ever published here
    excused = set(_excused(survey))
    lines = [f"- {line}" for line in look.drift.missing if line not in excused]
    lines += [f"+ {line}" for line in look.drift.surplus if line not in excused]
    if lines:
        more = [f"and {len(lines) - SHOWN} more: ctrport rules --diff"] if len(lines) > SHOWN else []
        yield Finding(
            code=Code.DRIFT,
            severity=Severity.SERIOUS,
            what=f"the kernel's table {ruleset.ADDRESS} is not what it should be: {len(lines)} differences",
            detail="\n".join([*lines[:SHOWN], *more]),
            fix=("ctrport sync",),
        )


def _excused(survey: Survey) -> Iterator[str]:
    """Give the differences to a look of our own that the watcher has a reason for.

    It has tried to bind each port, and keeps what it published for tasks that give no clear answer.
    """
    if survey.look is None or not survey.watcher.answers:
        return
    waiting = {(b.owner, b.mapping) for b in survey.bindings if b.state is State.WAITING}
    reconciler = survey.look.reconciler
    for owner in {owner for owner, _ in waiting}:
        for binding in reconciler.bindings(owner):
            if (owner, binding.mapping) in waiting:
                yield from (f"{name}: {element}" for name, element in ruleset.binding_elements(binding))
    kept = {ruleset.comment_for(Key(*names)) for names in survey.watcher.uncertain}
    for name in ruleset.MAPS if survey.listing else ():
        elements = survey.listing.elements.get(name, {}) if survey.listing else {}
        yield from (f"{name}: {element}" for element in elements.values() if element.comment in kept)
