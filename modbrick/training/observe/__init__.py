"""Observers of a run: metrics, progress, profile, timeline, and whatever is added to them."""
