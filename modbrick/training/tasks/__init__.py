"""Tasks: what a run is trained for. `task.py` says what every task offers."""
