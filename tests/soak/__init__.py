"""Random operations and faults, and an independent idea of what the kernel should hold: scripts/soak.

Nothing in here that says what is wanted, or what the kernel has, is ctrport's own code.
"""
