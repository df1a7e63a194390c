"""Sparse expert dispatch in plain XLA."""
