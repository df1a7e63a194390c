"""What every test stands on: the CPU, and one thread pool's worth of threads for each worker."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
