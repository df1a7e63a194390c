"""Checkpoints as the Hugging Face libraries lay them out.

`directory.py` opens one, `shards.py` knows its index, `buffers.py` what is no weight. Of
`config.json`: `fields.py`, `keys.py` and `rope.py` are what any config shares, `reading.py` and
`writing.py` what families of decoders share, `exported_config.py` decides what an export says.
"""
