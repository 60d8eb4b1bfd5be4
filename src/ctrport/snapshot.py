"""What the passes have seen of containerd."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctrport.model.workload import Key, Workload


@dataclass(slots=True)
class Snapshot:
    """What the last passes saw: every container that asks for ports, and all others' names."""

    workloads: dict[Key, Workload] = field(default_factory=dict)
    exited_for_good: set[Key] = field(default_factory=set)  # `run -d --rm` whose task has ended
    uncertain: set[Key] = field(default_factory=set)  # whose task gave no clear answer: left as they were
    known: set[Key] = field(default_factory=set)  # every container of every namespace, as of the last resync
