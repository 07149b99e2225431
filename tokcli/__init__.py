"""tok: image tokenizers that learn to reconstruct the features of an image-understanding model."""

__version__ = "0.1.0"
