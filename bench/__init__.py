"""The benchmark: ctrport beside its peers. Run it by scripts/bench; nothing of the product imports it."""
