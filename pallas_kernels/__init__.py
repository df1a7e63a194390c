"""Kernels for modular language models, usable alone: they depend on jax only."""
