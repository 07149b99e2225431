"""Look a component up by name in its family's dict, with an error that names the nearest one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tokcli.errors import TokError

T = TypeVar("T")


def nearest(name: str, names: Iterable[str]) -> str:
    """The most similar of `names` as a question ("Did you mean 'vq'?"), or a list of them all."""
    known = sorted(names)
    if not known:
        return "Leave it out: there are none"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Choose one of {', '.join(known)}"


def lookup(family: str, table: Mapping[str, T], name: str) -> T:
    """`table[name]`.

    Raises:
        TokError: no such name; the message names the family and the nearest member.
    """
    if name not in table:
        raise TokError(f"{family} '{name}'", f"no such {family}", next=nearest(name, table))
    return table[name]
