"""Looking at models and runs: summaries and pictures."""
