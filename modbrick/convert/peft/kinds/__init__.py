"""Kinds of adapters that PEFT has: what they store, and the bricks that compute the same."""
