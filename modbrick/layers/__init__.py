"""The layers of the network, one noun a file, from projections to the block."""
