"""Write docs/recipes.md: every key of every recipe, from types and docstrings. Run it when one of them changes."""

from pathlib import Path

from tokcli.cli.recipes import topics
from tokcli.recipe.explain import markdown

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
HEAD = """# Keys of recipes

Written by `python scripts/reference.py` from the code; do not edit it. `tok recipes --explain quantizer.vq` prints one of
these tables; [recipes-guide.md](recipes-guide.md) says how to use recipes.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(markdown(name, topic) for name, topic in topics().items())])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
