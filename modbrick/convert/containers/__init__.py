"""PyTorch `.bin` files, read without PyTorch and without running anything in them."""
