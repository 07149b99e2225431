"""tok: image tokenizers trained on the features of image-understanding models."""

__version__ = "0.1.0"
