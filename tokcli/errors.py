"""The errors a user can cause: one line each, `where: what. Got X. Next step.`"""

from functools import partial
from typing import Any

from tokcli.terminal import printable


class TokError(Exception):
    """An expected failure, printed as one line without a traceback; the command exits with 1.

    Args:
        where: the flag, file and key, or step at fault (`--data photos`, `recipes/x.yaml: optim.lr`).
        what: what is wrong with it, as a short clause without a full stop.
        next: what the user should do or type: a sentence that begins with a verb, or a question ("Did you mean 'vq'?").
        why: the cause, in the words of whatever refused it; it follows after a colon.
        got: the value that was found there, without the word "got".
    """

    exit_code = 1

    def __init__(self, where: str, what: str, *, next: str, why: str = "", got: str = "") -> None:
        self.where, self.what, self.why, self.got, self.next = where, what, why, got, next
        said = [f"{what}: {why.strip()}" if why.strip() else what, f"Got {got.strip()}" if got.strip() else "", next]
        parts = [printable(part).strip() for part in said]
        sentences = [part if part.endswith(("?", "!")) else f"{part.rstrip('.')}." for part in parts if part]
        super().__init__(f"{printable(where)}: {' '.join(sentences)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was made, so that it survives the way out of a worker process."""
        return partial(type(self), self.where, self.what, why=self.why, got=self.got, next=self.next), ()


class NotFound(TokError):
    """Data that is not on this machine; a dry run goes on without it."""


class Misuse(TokError):
    """Flags that cannot go together; exits with 2."""

    exit_code = 2


class Interrupted(TokError):
    """A run that was asked to stop, saved its state and can be resumed; exits with 75 (EX_TEMPFAIL)."""

    exit_code = 75
