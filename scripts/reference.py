"""Write docs/recipes.md: every key of every recipe, from types and docstrings. Run it when one of them changes."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # this checkout, whatever else is installed

from tokcli.cli.recipes import topics  # noqa: E402
from tokcli.recipe.explain import markdown  # noqa: E402

PAGE = ROOT / "docs" / "recipes.md"
HEAD = """# Keys of recipes

Written by `python scripts/reference.py` from the code; do not edit it. `tok recipes --explain quantizer.vq` prints one of
these tables; [recipes-guide.md](recipes-guide.md) says how to use recipes.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(markdown(name, topic) for name, topic in topics().items())])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
