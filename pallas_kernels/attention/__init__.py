"""Attention operations: stick-breaking and softmax, and what they share."""
