"""Docker's published ports for plain containerd, kept in nftables maps."""

__version__ = "0.1.0"
