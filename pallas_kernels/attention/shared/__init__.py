"""What the attention operations share: arguments, masks, blocks."""
