"""Families of models from the literature, as values of `ModelConfig`.

Examples:
    >>> from modbrick import families
    >>> config = families.mixtral(
    ...     vocabulary=32, width=16, layers=2, heads=4, key_value_heads=2, feed_forward_width=32,
    ...     experts=4
    ... )
    >>> config.layers[0].feed_forward.experts.count
    4
"""

from modbrick.config.families import dense, jetmoe, mixtral, moduleformer

__all__ = ["dense", "jetmoe", "mixtral", "moduleformer"]
