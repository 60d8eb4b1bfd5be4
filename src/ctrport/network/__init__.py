"""Networks, addresses and namespaces of containers."""
