"""The thin runtime: data, training, checkpoints, adapters, generation."""
