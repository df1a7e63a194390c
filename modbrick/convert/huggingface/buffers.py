"""Buffers that files of the transformers library carry beside the weights."""

from __future__ import annotations

import re

ROTARY_BUFFERS = re.compile(r"(.+\.)?rotary_emb\.((original_)?inv_freq|(cos|sin)_cached)")
"""Frequencies and angles that early releases saved, with each layer or once; the config says them,
and no release reads them any more."""
