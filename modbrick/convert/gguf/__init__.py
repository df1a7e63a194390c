"""GGUF files as sources."""
