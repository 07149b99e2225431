"""Artifacts: folders with a manifest and an id made from their content, complete or marked as running."""
