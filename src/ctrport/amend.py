"""Changing a container's ports without a restart: `publish` and `unpublish`, as a writer does them.

An addition is tried first: a pass is made as if containerd had it already, and containerd is told only if every
port of it is served. A withdrawal is told first, as nothing can keep it from being done. Whoever calls this lets no
other pass run meanwhile, and so of two changes at once none is lost.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ctrport.errors import ConflictError, ContainerdError, InputError, NotFoundError
from ctrport.model import ports
from ctrport.model.amendment import EXTENSION
from ctrport.model.annotations import amended, barred
from ctrport.model.bindings import State
from ctrport.model.listing import join

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrport.containerd.client import Client
    from ctrport.model.ledger import Ledger
    from ctrport.model.ports import PortMapping
    from ctrport.model.workload import Container, Key
    from ctrport.reconcile import Reconciler

MOST_TOLD = 5  # of a range of thousands, the first few that fail tell enough


async def publish(client: Client, reconciler: Reconciler, key: Key, specs: str) -> dict[str, Any]:
    """Add mappings to a container: all of them or none.

    Gives whether it runs, and what became of the mappings: of one that does not run, nothing yet.
    ConflictError names who holds a port, or why the container cannot have any.
    """
    wanted = _read(specs)
    container = await _container(client, key)
    asked = await reconciler.snapshot.asked(container)
    changes, _ = amended(container)
    if reconciler.ledger is None:
        await reconciler.resync()
    value = changes.publish(asked, wanted, stamp(reconciler.ledger)).encode()
    reconciler.snapshot.trials[key] = value
    try:
        await reconciler.refresh([key])
        running = _check(reconciler, key, wanted)
        await _store(client, container, value)
    finally:
        del reconciler.snapshot.trials[key]
        await reconciler.refresh([key])
    served = [b.to_json() for b in reconciler.bindings(key) if b.mapping in wanted]
    return {"running": running, "mappings": served}


def stamp(ledger: Ledger | None) -> int:
    """Give the time of a wish that is made now, later than all there are: the clock may have been set back."""
    return max(time.time_ns(), ledger.newest + 1 if ledger else 0)


async def unpublish(client: Client, reconciler: Reconciler, key: Key, specs: str | None) -> dict[str, Any]:
    """Withdraw mappings from a container, all of them for None; gives what was withdrawn and what is left.

    A mapping is named as it was asked for, or with the host port that it was given. NotFoundError for one that
    the container does not ask for, and then nothing is changed.
    """
    container = await _container(client, key)
    await reconciler.refresh([key])
    asked = await reconciler.snapshot.asked(container)
    changes, _ = amended(container)
    there = changes.apply(asked)
    unwanted = there if specs is None else _find(reconciler, key, _read(specs), there)
    await _store(client, container, changes.unpublish(asked, unwanted).encode())
    await reconciler.refresh([key])
    return {
        "removed": [str(mapping) for mapping in unwanted],
        "mappings": [binding.to_json() for binding in reconciler.bindings(key)],
    }


def _read(specs: str) -> dict[PortMapping, None]:
    """Read specs, each once, in their order."""
    mappings, errors = ports.parse_list(specs)
    if errors:
        raise errors[0]
    ports.reject_duplicates(dict.fromkeys(mappings))
    if not mappings:
        raise InputError("no port is named", hint="ctrport publish web 8080:80")
    return dict.fromkeys(mappings)


async def _container(client: Client, key: Key) -> Container:
    try:
        container = await client.container(key)
    except NotFoundError:
        raise NotFoundError(
            f"no container {key.id} in namespace {key.namespace}",
            hint="ctrport ps -a; for another namespace: ctrport -n NAMESPACE",
        ) from None
    if reason := barred(container):
        raise ConflictError(f"{key}: {reason}")
    return container


async def _store(client: Client, container: Container, value: bytes) -> None:
    """Tell containerd, unless it has it already: each update is an event for everybody who watches."""
    if value != container.extensions.get(EXTENSION, b""):
        await client.set_extension(container.key, EXTENSION, EXTENSION, value)


def _check(reconciler: Reconciler, key: Key, wanted: Iterable[PortMapping]) -> bool:
    """Say whether a container runs; ConflictError unless it then has every mapping."""
    if key in reconciler.snapshot.uncertain:
        raise ContainerdError(f"no clear answer about the task of {key}", hint="try again; see containerd's log")
    workload = reconciler.snapshot.workloads.get(key)
    if workload is None:
        raise NotFoundError(f"container {key.id} was removed meanwhile")
    if workload.endpoint is None:
        return False
    found = {binding.mapping: binding for binding in reconciler.bindings(key)}
    if any(mapping not in found for mapping in wanted):
        raise ConflictError(f"{key}: {workload.problems[0]}")  # such as an internal network: it can have none
    lost = [found[mapping] for mapping in wanted if found[mapping].state is not State.ACTIVE]
    if lost:
        taken = any(binding.state is State.WAITING for binding in lost)
        raise ConflictError(
            "; ".join(f"{b.mapping}: {b.reason}" for b in lost[:MOST_TOLD]),
            hint="choose another host port, or stop who holds it" if taken else "ctrport config show",
        )
    return True


def _find(
    reconciler: Reconciler, key: Key, named: Iterable[PortMapping], there: tuple[PortMapping, ...]
) -> list[PortMapping]:
    """Give the mappings that are named, as they were asked for."""
    asked = set(there)
    given: dict[tuple[object, ...], PortMapping] = {
        (b.mapping.host_ip, b.host_port, b.mapping.container_port, b.mapping.protocol): b.mapping
        for b in reconciler.bindings(key)
        if b.host_port is not None
    }
    found, missing = [], []
    for mapping in named:
        place = (mapping.host_ip, mapping.host_port, mapping.container_port, mapping.protocol)
        match = mapping if mapping in asked else given.get(place)
        if match is None:
            missing.append(mapping)
        else:
            found.append(match)
    if missing:
        raise NotFoundError(
            f"container {key.id} does not publish {join(missing)}", hint=f"it publishes {join(there) or 'nothing'}"
        )
    return list(dict.fromkeys(found))
