"""`ctrport run --dry-run`: what would be done, in a form that can be pasted; touches nothing."""

from __future__ import annotations

import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from ctrport.errors import ConflictError, NotFoundError
from ctrport.firewall import ruleset
from ctrport.firewall.ruleset import Links
from ctrport.model.annotations import automatic
from ctrport.model.grants import BY_POLICY
from ctrport.model.ledger import Ledger
from ctrport.model.workload import Endpoint, Key, Workload
from ctrport.network import files, networks
from ctrport.run import names, task, translate

if TYPE_CHECKING:
    from ctrport.config import Settings
    from ctrport.network.networks import Network
    from ctrport.run.options import Options

STAND_IN = IPv4Address("192.0.2.2")  # TEST-NET-1, RFC 5737


def script(settings: Settings, options: Options) -> str:
    """Give the ctr commands and the nft script of a run on a host that has no other container.

    Addresses and automatic ports are the first that such a host would give.
    """
    network = _network(settings, options) if options.bridged and not options.by_cni else None
    if network is not None and network.internal:
        options = options._replace(publish=(), publish_all=False)
    if options.publish_all:
        added = automatic(options.expose, options.publish)
        options = options._replace(publish=(*options.publish, *added))
    name = options.name or names.generated_name(options.image)
    image = options.image if options.rootfs else names.full_reference(options.image)
    key = Key(settings.namespace, names.check_identifier("the name", name))
    where = files.directory(settings.root, key)
    log = task.log_of(where) if options.detach and not options.tty else None
    netns = f"/run/netns/ctrport-{name}" if options.bridged else None
    if options.shared_with is not None:
        netns = f"/run/netns/ctrport-{options.shared_with}"
    mounts = [] if options.network == "host" else [(where / n, f"/etc/{n}") for n in files.NAMES]
    lines = [
        "# containers and ports as on a host without others: addresses are chosen when it is run",
        *(["# -P: the ports that the image exposes come on top, the image was not read"] * options.publish_all),
        translate.pasteable(translate.create(settings, options, name=name, image=image, netns=netns, files=mounts)),
        translate.pasteable(translate.start(settings, detach=options.detach, name=name, log=log)),
    ]
    if policy := translate.restart(settings, options, name=name, log=log):
        lines.append(translate.pasteable(policy))
    if options.bridged:
        if network is None:
            lines.append(f"# {STAND_IN} stands for the address that the CNI plugins choose")
        ledger = Ledger(policy=settings.config.policy)
        ledger.put(
            Workload(
                key=key,
                created_at=time.time_ns(),
                requests=options.publish,
                endpoint=_endpoint(network, options),
                labels=tuple(sorted(translate.labels(options).items())),
            )
        )
        ledger.settle()
        # Not what other reasons refuse: this host's addresses are not looked at.
        if refused := [f"{b.mapping}: {b.reason}" for b in ledger.bindings(key) if b.reason.startswith(BY_POLICY)]:
            raise ConflictError("; ".join(refused[:5]), hint="ctrport config show")
        table = ruleset.build(ledger.bindings(key), _links(network), mark=settings.config.mark)
        lines.append(f"nft -f - <<'EOF'\n{table.rebuild()}EOF")
    return "\n".join(lines) + "\n"


def _endpoint(network: Network | None, options: Options) -> Endpoint:
    if network is None:
        return Endpoint(ipv4=STAND_IN)
    ipv4 = options.ip or next(a for a in network.ipv4.hosts() if a != network.gateway4)
    return Endpoint(ipv4=ipv4, ipv6=network.ipv6_of(ipv4), interface=network.bridge)


def _links(network: Network | None) -> Links:
    if network is None:
        return Links()
    bridge = frozenset({network.bridge})
    return Links(
        bridges=bridge,
        internal=bridge if network.internal else frozenset(),
        isolated=bridge if network.isolate else frozenset(),
    )


def _network(settings: Settings, options: Options) -> Network:
    try:
        return networks.load(settings.root, options.network)
    except NotFoundError:
        if options.network != networks.DEFAULT:
            raise
        return networks.Network(name=networks.DEFAULT, bridge=networks.DEFAULT_BRIDGE, ipv4=networks.CANDIDATES[0])
