"""Data: image sources, transforms, batches in a fixed order, stores of tokens and samples."""
