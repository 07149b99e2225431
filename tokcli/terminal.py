"""What reaches a terminal: no control character from data, and no error where nobody reads any more.

A file name or a caption may hold escape sequences that move the cursor, and marks that turn the direction of the line around
them. `Terminal` stands at the end of all that is printed and writes such characters as escapes.
"""

import io
import json
import logging
import os
import re
import sys
from typing import Any, TextIO

STREAMS = ("stdin", "stdout", "stderr")


def printable(text: str) -> str:
    """Text of others as one line of valid UTF-8: what cannot be printed is escaped."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole if whole.isprintable() else "".join(map(_escaped, whole))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


BREAKS = re.compile(r"(\n)")
MOVES = re.compile(r"(\n|\r|\x1b\[A)")  # and how a progress bar goes back to the start of its own line or up to another


def shown(text: str, kept: re.Pattern[str] = MOVES) -> str:
    """The same for several lines: what is `kept` stays, breaks of lines and what moves progress bars."""
    return text if text.isprintable() else "".join(p if kept.fullmatch(p) else printable(p) for p in kept.split(text))


def as_json(value: Any) -> str:
    """Indented JSON in readable UTF-8, in which what cannot be printed is escaped as JSON does it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


class Line(logging.Formatter):
    """A notice as one printable line."""

    def format(self, record: logging.LogRecord) -> str:
        """The message."""
        return printable(record.getMessage())


class Terminal(io.TextIOWrapper):
    """A text stream that prints what `shown` leaves of a text; bytes written to its `buffer` pass as they are."""

    kept = MOVES

    def write(self, text: str) -> int:
        """Print text; returns the number of characters that were given."""
        super().write(shown(text, self.kept))
        return len(text)


class Result(Terminal):
    """Where results are printed, and no progress bars."""

    kept = BREAKS


class _Deaf(io.FileIO):
    """A file whose writes never fail: what cannot be written (nobody reads, a full disk, a closed session) is dropped."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


class _Named(io.FileIO):
    """A file whose errors say which stream it is."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "stdout"
            raise


def guard() -> None:
    """Make stdout and stderr safe to print on, for the whole process.

    A command loses its result with its stdout, and ends with an error; progress and notices on stderr are worth no training.
    A stream that is closed at the start becomes /dev/null, so that no file of a command is opened in its place and receives
    what a library prints.
    """
    for number, name in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if number and getattr(sys, name) is None:  # a closed stdin stays None, which who asks for it can say
            setattr(sys, name, open(number, "w", closefd=False))
    sys.stdout = _terminal(Result, _Named(1, "w", closefd=False), sys.stdout)
    sys.stderr = _terminal(Terminal, _Deaf(2, "w", closefd=False), sys.stderr)


def _terminal(kind: type[Terminal], raw: io.FileIO, before: TextIO) -> Terminal:
    before.flush()
    return kind(io.BufferedWriter(raw), encoding=before.encoding, errors="backslashreplace", line_buffering=True)


def give_up_stdout() -> None:
    """Drop what stdout still holds where nobody takes it, so that the process does not fail once more as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
