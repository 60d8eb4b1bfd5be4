"""Containers on the host's CNI networks: connected by the plugins, in a named namespace that is ours.

For each one there is a record, `cni/NAMESPACE/ID.json` under the root directory, written before ADD and removed
after DEL. It holds the configuration and the result, so that DEL is told what ADD was told whatever the host's
files say by then, and so that a crash leaves nothing that cannot be found. It lies outside the container's own
directory, which goes whether DEL works or not. Whoever calls this holds the writer's lock.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrport.errors import CtrportError, HostError
from ctrport.model.workload import Key
from ctrport.network import cni, files, links, netns, proc

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ctrport.config import Settings
    from ctrport.network.proc import NetworkNamespace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A container's place on a CNI network."""

    container: Key
    containerd: str  # address of the containerd that knows the container
    netns: str  # name under /run/netns, and CNI's id of the container: no two containers ever have the same
    plugins: tuple[str, ...]
    configuration: dict[str, Any]
    result: dict[str, Any] | None = None  # of ADD; None: it has not ended well (yet)

    @property
    def attachment(self) -> cni.Attachment:
        return cni.Attachment(
            configuration=self.configuration,
            container=self.netns,
            netns=netns.DIRECTORY / self.netns,
            plugins=tuple(map(Path, self.plugins)),
        )


def attach(settings: Settings, container: Key, name: str | None, namespace: str) -> NetworkNamespace:
    """Make the namespace and have the plugins connect it; on failure nothing of it stays.

    Gives the addresses and routes inside. NotFoundError for a network that is not configured, HostError with the
    words of a plugin that fails.
    """
    record = Record(
        container=container,
        containerd=settings.address,
        netns=namespace,
        plugins=tuple(map(str, settings.config.cni_plugins)),
        configuration=cni.configuration(settings.config.cni_config, name),
    )
    record.attachment.check()
    with ExitStack() as undo:
        files.make_directory(settings.root, container)
        undo.callback(files.remove, files.directory(settings.root, container))
        _write(settings.root, record)
        undo.callback(_detach_or_tell, settings.root, container)
        found = _connect(settings.root, record)
        if not found.addresses:
            raise HostError(f"the CNI network {record.configuration['name']} gave {container} no address")
        undo.pop_all()
    return found


def detach(root: Path, container: Key) -> None:
    """Have the plugins disconnect a container; twice is the same as once.

    HostError when a plugin fails; the record stays then, and the next full pass tries again. After an ADD that
    failed, DEL is tried once: what could not be made often cannot be unmade.
    """
    record = _read(_path(root, container))
    if record is None:
        return
    try:
        record.attachment.delete(record.result)
    except HostError as error:
        if record.result is not None:
            raise
        log.warning("%s: %s", container, error.message)
    netns.remove(record.netns)
    _path(root, container).unlink(missing_ok=True)


def repair(settings: Settings, known: Collection[Key], kept: Collection[Key]) -> list[Key]:
    """Disconnect what no container has any more, and connect again what a reboot took apart.

    Gives the containers connected again. What fails is told and tried again at the next full pass.
    """
    connected = []
    for record in list(every(settings.root)):
        if record.containerd != settings.address or record.container in kept:
            continue
        try:
            if record.container not in known:
                log.info("disconnecting what is left of %s: namespace %s", record.container, record.netns)
                detach(settings.root, record.container)
                files.remove(files.directory(settings.root, record.container))
            elif not netns.is_mounted(netns.DIRECTORY / record.netns):
                log.info("connecting %s to CNI network %s again", record.container, record.configuration["name"])
                record.attachment.delete(record.result)  # its lease may have outlived the reboot
                _connect(settings.root, record)
                connected.append(record.container)
        except CtrportError as error:
            log.error("%s: %s", record.container, error.message)  # noqa: TRY400 - told in full
    return connected


def nameservers(root: Path, container: Key) -> tuple[str, ...]:
    """Give the DNS servers that the network's plugins named for a container."""
    record = _read(_path(root, container))
    dns = ((record.result if record else None) or {}).get("dns") or {}
    return tuple(str(server) for server in dns.get("nameservers") or ())


def every(root: Path) -> Iterator[Record]:
    """Read all records."""
    for path in sorted(root.glob("cni/*/*.json")):
        try:
            record = _read(path)
        except HostError as error:  # it must not keep the others from being looked after
            log.error("%s", error.message)  # noqa: TRY400 - told in full
            continue
        if record is not None:
            yield record


def _connect(root: Path, record: Record) -> NetworkNamespace:
    path = netns.create(record.netns)
    netns.inside(path, links.prepare_inside)
    result = record.attachment.add()
    _write(root, dataclasses.replace(record, result=result))
    found: list[NetworkNamespace] = []
    netns.inside(path, lambda: found.append(proc.read()))
    return found[0]


def _detach_or_tell(root: Path, container: Key) -> None:
    """Take back after a failure; if that fails too it is told, as there is another error on its way."""
    try:
        detach(root, container)
    except CtrportError as error:
        log.error("%s: %s; the next full pass tries again", container, error.message)  # noqa: TRY400


def _path(root: Path, container: Key) -> Path:
    return root / "cni" / container.namespace / f"{container.id}.json"


def _write(root: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    path = _path(root, record.container)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n", "utf-8")
    draft.rename(path)


def _read(path: Path) -> Record | None:
    try:
        raw = json.loads(path.read_text("utf-8"))
        return Record(**{**raw, "container": Key(*raw["container"]), "plugins": tuple(raw["plugins"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"cannot read {path}: {error}", hint="mend or remove it") from error
