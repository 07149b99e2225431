"""Pages that open from disk: a room's HTML, styles and scripts in one file, over the theme that all pages share."""

import html
from collections.abc import Sequence
from pathlib import Path

THEME = Path(__file__).parent / "web" / "theme.css"


def fill(web: Path, page: str, styles: Sequence[str], scripts: Sequence[str], *, title: str, body: str = "") -> str:
    """A page with the theme, its styles and its scripts inside.

    Args:
        web: the folder of its files.
        page: its file, with the places @TITLE@, @STYLE@, @SCRIPT@ and @BODY@.
        styles, scripts: files to put in, in this order; the theme comes before them.
        title: plain text.
        body: HTML.
    """
    read = lambda files: "\n".join(file.read_text(encoding="utf-8") for file in files)  # noqa: E731
    style, script = read([THEME, *(web / name for name in styles)]), read([web / name for name in scripts])
    # in this order: what a user named comes last, and is not searched for places
    parts = (("@STYLE@", style), ("@SCRIPT@", script), ("@TITLE@", html.escape(title)), ("@BODY@", body))
    text = (web / page).read_text(encoding="utf-8")
    for place, value in parts:
        text = text.replace(place, value)
    return text
