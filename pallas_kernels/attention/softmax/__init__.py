"""Softmax attention with the conventions of the stick-breaking operation."""
