"""What an emoji shows, apart from variants: the unit by which `openmoji` is split, so that none leaks.

Two emoji are one concept when one drawing is a variant of the other: by person ("man cook", "woman cook",
"cook"), hair, direction, size or colour ("red heart", "green heart"), hour or phase, number on a key, or two
places under the same flag. Skin tones are no samples at all. Drawings that share a meaning and little ink
("cat", "tiger"), and the expressions of the yellow face, stay apart: a tokenizer is to tell those.
"""

import hashlib
import re

VAL_SHARE = 0.15  # of the concepts: enough held-out patches (15 a code of 512) for codebook usage to mean something

# Words that tell a variant from its siblings. What is left of a name, in order, is its concept.
_VARIANTS = """
man woman person men women people boy girl child old older mrs mx santa
red orange yellow green blue purple brown black white grey pink light dark
left right up down upwards downwards leftwards rightwards facing oncoming tilted curving
horizontal horizontally vertical vertically clockwise counterclockwise
large medium small heavy low high volume slightly
open closed raised lowered muted slash done not with without and of the in
"""
_DROPPED = frozenset(_VARIANTS.split())

# Families whose names do not say that they are one.
_FAMILIES = (
    (r"^(man|woman|person)( bald| beard| [a-z]+ hair| frowning| pouting)$", "person"),
    (r"^family\b", "family"),
    (r"^kiss( (wo)?man|$)", "couple kissing"),
    (r"^couple with heart", "couple with heart"),
    (r"holding hands$", "couple holding hands"),
    (r"^mer(maid|man|person)$", "merperson"),
    (r"^prince(ss)?$|^person with crown$", "prince"),
    (r"o.clock$|-thirty$", "clock face"),
    (r"^keycap", "keycap"),
    (r"(crescent|gibbous|quarter|full|new) moon|circle$", "disc"),  # a full moon is drawn as a yellow circle
    (r"(play|reverse|forward|track|upwards|downwards|fast up|fast down) button$", "arrow button"),
    (r"^(un)?locked", "padlock"),
    (r"^globe showing", "globe"),
    (r"face with horns$", "horned face"),
    (r"star of david$|six-pointed star$", "six-pointed star"),
)

# One flag that flies over several places; then flags that differ in a small emblem (by less than 5 % of full
# scale, root mean square at 64 px, which no other two concepts do).
_SAME_FLAG = {
    "Clipperton Island": "France",
    "St. Martin": "France",
    "Bouvet Island": "Norway",
    "Svalbard & Jan Mayen": "Norway",
    "Ceuta & Melilla": "Spain",
    "Heard Island & McDonald Islands": "Australia",
    "U.S. Outlying Islands": "United States",
    "Monaco": "Indonesia",
    "Chad": "Romania",
    "Diego Garcia": "British Indian Ocean Territory",
    "Nicaragua": "Honduras",
    "Palestinian Territories": "Jordan",
    "Paraguay": "Netherlands",
    "Senegal": "Mali",
    "Tajikistan": "Hungary",
    "Yemen": "Egypt",
}


def concept(caption: str) -> str:
    """The concept that a caption such as "woman cook" or "flag: France" names, in lower case."""
    if caption.startswith("flag: "):
        place = caption.removeprefix("flag: ")
        return f"flag: {_SAME_FLAG.get(place, place)}".lower()
    name = caption.lower()
    for pattern, family in _FAMILIES:
        if re.search(pattern, name):
            return family
    words = [word.removesuffix("\u2019s") for word in re.split(r"[\s\-]+", name)]
    left = [word for word in words if word.strip(".") not in _DROPPED]
    return " ".join(word.removesuffix("s") for word in left) or "person"


def split_of(name: str) -> str:
    """The split of a concept: "val" for a tenth, else "train"; by hash, so that new emoji move no old one."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"openmoji").digest()
    return "val" if int.from_bytes(digest, "big") < VAL_SHARE * 2**64 else "train"
