"""The names of annotations that are addressed to us; what they come to is known by `annotations`."""

from __future__ import annotations

PUBLISH = "ctrport.io/publish"  # port specs, separated by commas or white space
NETWORK = "ctrport.io/network"  # by `ctrport run`: the network that the container is on
AUTO_REMOVE = "ctrport.io/rm"  # by `ctrport run -d --rm`: remove the container once it has exited
