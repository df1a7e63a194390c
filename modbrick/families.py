"""Where `modbrick.config.families` was before; configs that import it from here go on working."""

from modbrick.config.families import dense, jetmoe, mixtral, moduleformer

__all__ = ["dense", "jetmoe", "mixtral", "moduleformer"]
