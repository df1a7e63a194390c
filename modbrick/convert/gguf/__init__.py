"""GGUF files as sources of an import.

`header.py` reads a file's header, `values.py` the metadata in it, `encodings.py` the numbers, which
`blocks.py` and `superblocks.py` decode; `llama.py` is the format (with `keys.py` and `rope.py`),
`tokenizer.py` the tokenizer (with `pre_tokenizers.py` and `sentencepiece.py`), and `source.py` puts
it all together.
"""
