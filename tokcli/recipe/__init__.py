"""Recipes: strict YAML files, all errors reported at once, resolved into a recipe that repeats the run."""
