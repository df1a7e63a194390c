"""Packaging of modbrick and pallas_kernels; the tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
[VERSION] = re.findall(
    r'(?m)^__version__ = "(.+)"$', (ROOT / "modbrick/__init__.py").read_text(encoding="utf-8")
)

REQUIRES = [
    "absl-py>=2.3",
    "array-record>=0.8.1",
    "chex>=0.1.92",
    "etils[epath]>=1.13",
    "filelock>=3.30",
    "flax>=0.12.12",
    "grain>=0.2.18",
    "jax>=0.11.2",
    "jaxlib>=0.11.2",
    "jaxtyping>=0.3.3",
    "matplotlib>=3.10",
    "ml-collections>=1.1",
    "numpy>=2.2",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pyarrow>=20",
    "rich>=14",
    "tensorboardX>=2.6.4",
    "tensorstore>=0.1.84",
    "tokenizers>=0.22",
    "zstandard>=0.23",
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.11.2"],
    "cuda": ["jax[cuda13]>=0.11.2"],
    # Ahead-of-time compilation for TPUs on a machine without one; through jax's own extra, because
    # that is what pairs libtpu with jaxlib.
    "plan": ["jax[tpu]>=0.11.2"],
    # The same for Hopper GPUs: XLA's plugin and the assemblers, without the libraries that only
    # running needs.
    "plan-cuda": [
        "jax-cuda13-plugin>=0.11.2; sys_platform == 'linux'",
        "nvidia-cuda-nvcc>=13,<14; sys_platform == 'linux'",
        "nvidia-cuda-nvdisasm>=13,<14; sys_platform == 'linux'",
        "nvidia-nvvm>=13,<14; sys_platform == 'linux'",
    ],
    # Directories on Google Cloud Storage (gs://).
    "gcs": ["etils[epath-gcs]>=1.13"],
    # Checkpoints fetched by their name on the Hugging Face hub.
    "convert": ["huggingface-hub>=1.0"],
    # Near copies among the documents of a data set.
    "deduplicate": ["datasketch>=2.0"],
    "test": [
        "datasketch>=2.0",
        "fsspec>=2025.3",
        # Only to show what its reader takes for true.
        "gguf>=0.19",
        "hypothesis>=6.130",
        "pytest>=9",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "pyyaml>=6",
        "safetensors>=0.6",
        "scipy>=1.15",
        "sybil>=10",
    ],
    "dev": [
        "mypy>=2.4",
        "pre-commit>=4.2",
        "ruff>=0.17",
    ],
    # The site of guides and reference; ruff folds the signatures.
    "docs": [
        "mkdocs>=1.6",
        "mkdocs-material>=9.7",
        "mkdocstrings[python]>=1.0",
        "ruff>=0.17",
    ],
}

setup(
    name="modbrick",
    version=VERSION,
    description="Train and configure modular language models, made of bricks, in JAX.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(
        include=["modbrick", "modbrick.*", "pallas_kernels", "pallas_kernels.*"]
    ),
    package_data={"": ["py.typed", "*.json"]},
    entry_points={"console_scripts": ["modbrick=modbrick.__main__:main"]},
    python_requires=">=3.12",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
