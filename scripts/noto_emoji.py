"""Noto's colour emoji as a folder of images: the concepts of `openmoji` in another hand.

    apt install fonts-noto-color-emoji
    python scripts/noto_emoji.py noto                  writes noto/train and noto/val
    tok train-tokenizer --data noto/train

Base emoji, classes (Unicode's groups), captions (CLDR names) and the split by concept are those of `openmoji`, so that the two sets
differ in their drawings alone. Noto Color Emoji is published under the SIL Open Font License 1.1. The images are made here and
never come with tok.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from tokcli.data.sources.openmoji import Emoji, base_emoji, concept, split_of
from tokcli.errors import TokError
from tokcli.files import atomic_write

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian's and Ubuntu's place
STRIKE = 109  # pixels per em of the font's bitmaps; it has no other
CANVAS = 160  # holds a glyph of 136x128 px with room to tell where it ends
MARGIN = 1 / 16  # of the image's side, on each of its sides


class Font:
    """Noto Color Emoji, as pictures.

    Raises:
        TokError: the font is not there, or Pillow cannot draw it.
    """

    def __init__(self, path: Path = FONT) -> None:
        if not path.is_file():
            raise TokError(
                "--font", "no such font", got=str(path), next="Install fonts-noto-color-emoji, or name its file"
            )
        if not features.check("raqm"):
            raise TokError(
                "Pillow", "lacks Raqm, which joins the code points of flags and families", next="Install a Pillow wheel"
            )
        try:
            self.font = ImageFont.truetype(str(path), STRIKE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise TokError(
                "--font", f"{path} has no bitmaps of {STRIKE} px", why=str(error), next="Name another font"
            ) from None
        self.absent = self._drawn("\U0010fffd")  # a code point that nobody assigns

    def _drawn(self, text: str) -> Image.Image:
        canvas = Image.new("RGBA", (3 * CANVAS, CANVAS), (255, 255, 255, 0))
        ImageDraw.Draw(canvas).text((8, 8), text, font=self.font, embedded_color=True)
        return canvas

    def render(self, text: str, size: int) -> Image.Image | None:
        """One emoji, centred on white, `size` pixels square; None where the font has no single glyph for it."""
        drawn = self._drawn(text)
        box = drawn.getbbox()
        if box is None or box[2] - box[0] > CANVAS or drawn.tobytes() == self.absent.tobytes():
            return None
        glyph = drawn.crop(box)
        side = max(glyph.size) * (1 + 2 * MARGIN)
        square = Image.new("RGBA", (round(side), round(side)), (255, 255, 255, 255))
        square.alpha_composite(glyph, ((square.width - glyph.width) // 2, (square.height - glyph.height) // 2))
        return square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def text_of(emoji: Emoji) -> str:
    """The characters of an emoji."""
    return "".join(chr(int(point, 16)) for point in emoji.key.split("-"))


def images(font: Font, size: int, chosen: list[Emoji]) -> Iterator[tuple[Emoji, Image.Image | None]]:
    """Each emoji with its picture; None where the font has none."""
    for emoji in chosen:
        yield emoji, font.render(text_of(emoji), size)


def write(out: Path, font: Font, size: int, chosen: list[Emoji]) -> dict[str, int]:
    """Write train and val: DIR/CLASS/KEY.png and captions.jsonl.

    Returns:
        images by split, and `without a glyph`.
    """
    counts = {"train": 0, "val": 0, "without a glyph": 0}
    captions: dict[str, list[str]] = {"train": [], "val": []}
    for emoji, image in images(font, size, chosen):
        if image is None:
            counts["without a glyph"] += 1
            continue
        split = split_of(concept(emoji.caption))
        name = f"{emoji.category}/{emoji.key}.png"
        target = out / split / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as tmp:
            image.save(tmp, format="PNG")
        captions[split].append(json.dumps({"key": name, "captions": [emoji.caption]}, ensure_ascii=False))
        counts[split] += 1
    for split, lines in captions.items():
        with atomic_write(out / split / "captions.jsonl") as tmp:
            Path(tmp).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counts


def main() -> int:
    """Write the folder that the command line names; 1 if that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (64)")
    options = parser.parse_args()
    try:
        counts = write(options.out, Font(options.font), options.size, base_emoji())
    except TokError as error:
        print(error, file=sys.stderr)
        return 1
    print(", ".join(f"{name}: {number:,}" for name, number in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
