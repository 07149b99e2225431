"""Recipes: strict YAML files, all errors reported at once, resolved into a recipe that repeats the run."""

MAX_PIXELS = 64_000_000  # of an image: what is refused by its header takes no memory
