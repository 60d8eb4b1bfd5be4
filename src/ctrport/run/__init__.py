"""`ctrport run`: Docker's `run -p` by way of `ctr`."""
