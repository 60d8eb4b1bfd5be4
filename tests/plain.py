"""Containers that plain `ctr` makes, on networks that are not ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab import Lab
    from program import Cli

CNI_ADDRESS = "198.51.100.18"  # the first that is given out by the configuration below
# /etc/cni and /opt/cni are built into `ctr run --cni`: here they are made in a mount namespace of its own.
WITH_CNI = """
set -e
mount -t tmpfs tmpfs /opt
mkdir -p /opt/upper/cni/net.d /opt/work /opt/cni
ln -s /usr/lib/cni /opt/cni/bin
cp "$1" /opt/upper/cni/net.d/10-web.conflist
mount -t overlay overlay -o lowerdir=/etc,upperdir=/opt/upper,workdir=/opt/work /etc
shift
exec "$@"
"""


def joining(lab: Lab, *, number: int = 2) -> tuple[str, str]:
    """Give the option by which ctr has a container join a namespace on somebody else's bridge."""
    if "br0" not in lab.host.run("ip", "-o", "link").stdout:
        lab.bridge("br0", "198.51.100.1/24")
    ns = lab.container_like(f"plain{number}", "br0", f"198.51.100.{number}/24", gateway4="198.51.100.1")
    return "--with-ns", f"network:{ns.path}"


def with_ns(ctrport: Cli, lab: Lab, *options: str, number: int = 2, image: str | None = None) -> str:
    """Start a container with `ctr run --with-ns`, and give its name."""
    name = ctrport.containerd.unique("plain")
    image = image or ctrport.containerd.image
    ctrport.containerd.ctr("run", "-d", *options, *joining(lab, number=number), image, name)
    return name


def with_cni(ctrport: Cli, lab: Lab, *options: str) -> str:
    """Start a container with `ctr run --cni`, and give its name; one of a test is at CNI_ADDRESS."""
    ipam = {
        "type": "host-local",
        "dataDir": str(ctrport.directory / "leases"),
        "ranges": [[{"subnet": "198.51.100.16/28"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    conflist = ctrport.directory / "10-web.conflist"
    conflist.write_text(json.dumps({"cniVersion": "1.0.0", "name": "web", "plugins": [bridge]}))
    containerd = ctrport.containerd
    name = containerd.unique("cni")
    command = ("ctr", "--address", containerd.address, "run", "-d", "--cni", *options, containerd.image, name)
    shell = ("unshare", "--mount", "sh", "-c", WITH_CNI, "sh", conflist)
    lab.host.run(*shell, *command, env=containerd.environment)
    return name


def task_pid(ctrport: Cli, name: str) -> int:
    """Give the process id of a container's task, 0 while none runs."""
    tasks = [line.split() for line in ctrport.containerd.ctr("tasks", "list").splitlines()[1:]]
    return next((int(task[1]) for task in tasks if task[0] == name and task[2] == "RUNNING"), 0)
