"""Captions that pictures are asked for by: one a line, from a file or from standard input."""

import sys
from pathlib import Path

from tokcli.errors import TokError
from tokcli.limits import TooLarge, read_bytes

MOST_PROMPTS = 64 << 20  # bytes: of a million captions


def read_prompts(source: str) -> list[str]:
    """The captions in a file, or of standard input where `source` is `-`, without the white space around them.

    Raises:
        TokError: unreadable, not UTF-8, no line at all, or an empty one.
    """
    where = f"--prompts {source}"
    try:
        if source == "-" and sys.stdin is None:  # it is closed
            raise TokError(where, "standard input is closed", next="Give a file, or write captions to it")
        data = sys.stdin.buffer.read(MOST_PROMPTS + 1) if source == "-" else read_bytes(Path(source), MOST_PROMPTS)
        if len(data) > MOST_PROMPTS:
            raise TooLarge(f"has more than {MOST_PROMPTS:,} bytes")
        lines = (
            data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        )  # splitlines also breaks at form feeds and the like
        prompts = [line.strip() for line in (lines if lines[-1] else lines[:-1])]
    except UnicodeDecodeError as error:
        raise TokError(where, "is not UTF-8 text", why=str(error)) from None
    except TooLarge as error:
        raise TokError(where, str(error), next="Split it") from None
    except OSError as error:
        raise TokError(where, "cannot be read", why=error.strerror or str(error)) from None
    if not prompts:
        raise TokError(where, "holds no captions", next="Write one a line")
    if "" in prompts:
        raise TokError(where, f"line {prompts.index('') + 1} holds no caption", next="Write one caption a line")
    return prompts
