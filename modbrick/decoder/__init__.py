"""The whole network: a decoder of segments, and what one may ask of it."""
