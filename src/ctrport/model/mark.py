"""The bit of conntrack's mark by which translated connections are known, unless config.toml says otherwise.

By itself, so that a command that only reads its settings need not load the ruleset: 20 ms.
"""

# Bit 16. Taken by others: CNI 0x2000, kube-proxy 0x4000 and 0x8000, netavark 0x1000 and 0x2000, Calico 20-31.
DEFAULT_MARK = 0x10000
