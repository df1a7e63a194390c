"""Contenders: our operations beside those of others, as programs."""
