"""Plans of runs: the memory and time that a run would need, before any machine is rented."""
