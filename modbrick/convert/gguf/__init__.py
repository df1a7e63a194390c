"""GGUF files as sources of an import.

`header.py` reads a file's header, `values.py` the metadata in it, `blocks.py` quantised numbers;
`llama.py` is the format (with `keys.py` and `rope.py`), `tokenizer.py` and `sentencepiece.py` the
tokenizer, and `source.py` puts it all together.
"""
