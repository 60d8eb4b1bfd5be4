"""CNI plugins called one after the other, as the specification says: bridge, portmap, firewall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab import Netns

PLUGINS = Path("/usr/lib/cni")


class Chain:
    """The three plugins on one host."""

    def __init__(self, host: Netns, directory: Path) -> None:
        self._host = host
        ranges = [[{"subnet": "198.51.100.0/24"}]]
        ipam = {"type": "host-local", "dataDir": str(directory), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True}
        self._plugins: tuple[dict[str, Any], ...] = (
            {**bridge, "ipam": ipam},
            {"type": "portmap"},
            {"type": "firewall"},
        )

    def add(self, container: str, netns: Netns, first: int, ports: int) -> None:
        """Connect a namespace and publish its ports from 80 on."""
        result: Any = None
        for plugin in self._plugins:
            result = self.call("ADD", plugin, container, netns, mappings=(first, ports), result=result)

    def delete(self, container: str, netns: Netns, first: int, ports: int) -> None:
        """Take it all back."""
        for plugin in reversed(self._plugins):
            self.call("DEL", plugin, container, netns, mappings=(first, ports), result=None)

    def call(
        self,
        command: str,
        plugin: dict[str, Any],
        container: str,
        netns: Netns,
        *,
        mappings: tuple[int, int],
        result: Any,
    ) -> Any:
        """Run one plugin; gives the result that it prints."""
        config = {"cniVersion": "1.0.0", "name": "bench", **plugin}
        if plugin["type"] == "portmap":
            first, ports = mappings
            ends = ((first + n, 80 + n) for n in range(ports))
            wanted = [{"hostPort": host, "containerPort": inside, "protocol": "tcp"} for host, inside in ends]
            config["runtimeConfig"] = {"portMappings": wanted}
        if result is not None:
            config["prevResult"] = result
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(netns.path),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        text = json.dumps(config)
        done = self._host.run(PLUGINS / plugin["type"], input=text, env=environment, timeout=300)
        return json.loads(done.stdout) if done.stdout.strip() else result
