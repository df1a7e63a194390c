"""Training: state, step, evaluation, metrics, and what a run is."""
