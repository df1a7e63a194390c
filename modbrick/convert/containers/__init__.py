"""Files that hold tensors: PyTorch archives, sharded safetensors."""
