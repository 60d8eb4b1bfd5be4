"""Bindings to an nftables table, and that table to the kernel."""
