"""The network: one noun a file, from projections to the decoder."""
