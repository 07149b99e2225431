"""Recipes: strict YAML in, every error at once, a resolved recipe out that repeats the run."""
