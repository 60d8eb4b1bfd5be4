"""Where things are unless an option says otherwise: the global options show it, and need no more of `config`."""

from pathlib import Path

ADDRESS = "/run/containerd/containerd.sock"
NAMESPACE = "default"
ROOT = Path("/var/lib/ctrport")
STATE = Path("/run/ctrport")
CONFIG = Path("/etc/ctrport/config.toml")
