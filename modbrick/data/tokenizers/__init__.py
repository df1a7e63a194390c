"""Tokenizers: the interface, its implementations, and their files."""
