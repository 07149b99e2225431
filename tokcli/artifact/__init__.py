"""Artifacts: folders with a manifest, named by their content, whole or marked as running."""
