"""Parts that the attention operations share: arguments, masks, blocks."""
