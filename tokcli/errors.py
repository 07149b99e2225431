"""The errors a user can cause: one line each, `where: what. got. next step.`"""


def printable(text: str) -> str:
    """A file's name as one line of valid UTF-8: what cannot be printed is escaped."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)


class TokError(Exception):
    """An expected failure, printed as one line without a traceback; the command exits with 1.

    Args:
        where: the flag, file and key, or step at fault (`--data photos`, `recipes/x.yaml: optim.lr`).
        what: what is wrong with it, as a short clause.
        got: what was found there, if that helps.
        next: what to do about it.
    """

    exit_code = 1

    def __init__(self, where: str, what: str, *, got: str = "", next: str = "") -> None:
        self.where, self.what, self.got, self.next = where, what, got, next
        what, got, next = map(printable, (what, got, next))
        sentences = [
            s if s.endswith(("?", "!")) else f"{s.rstrip('.')}." for s in map(str.strip, (what, got, next)) if s
        ]
        super().__init__(f"{printable(where)}: {' '.join(sentences)}")


class NotFound(TokError):
    """Data that is not on this machine; a dry run goes on without it."""


class Misuse(TokError):
    """Flags that cannot go together; exits with 2."""

    exit_code = 2


class Interrupted(TokError):
    """A run that was asked to stop, saved its state and can be resumed; exits with 75 (EX_TEMPFAIL)."""

    exit_code = 75
