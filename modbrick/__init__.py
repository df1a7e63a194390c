"""Language models made of bricks: train, take apart, rebuild and convert sparse models in JAX."""
