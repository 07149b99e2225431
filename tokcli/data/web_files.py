"""Files on web servers and what is said of files elsewhere: how long they are, and by which mark a change shows."""

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from tokcli.errors import NotFound, TokError

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20
BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP's statuses of servers that may give it in a moment


class Remote(NamedTuple):
    """A file elsewhere as it was when it was looked at; `tag` is its ETag or a like mark, else its time of change, else ""."""

    url: str
    bytes: int
    tag: str


class Gone(NotFound):
    """A file that its server says it does not have: a copy in the cache is of another time."""


class Refused(NotFound):
    """A request that a server does not answer in this form."""


class Busy(NotFound):
    """A server that may give the file in a moment: overloaded, restarted, or cut off before it answered."""


class Broken(Exception):
    """A connection that ended early: worth another try. Its text says why, if anything is known."""


def changed(remote: Remote) -> TokError:
    """What is said of a file that is not the one that was looked at."""
    return TokError(f"--data {remote.url}", "has changed on the server since the start", next="Repeat the command")


class Web:
    """Files at `https:` and `http:` addresses."""

    def look(self, url: str) -> Remote:
        """What a server says about a file.

        Raises:
            NotFound: the server cannot be reached (in a moment it may be: `Busy`), or does not have it (`Gone`).
            TokError: it does not say how long the file is, or compresses it on the way.
        """
        try:
            answer = _open(url, "HEAD")
        except Refused:  # as of addresses that are signed for reading alone
            answer = _open(url)
        with answer:
            return _described(url, answer)

    def rest(self, remote: Remote, out: IO[bytes]) -> Iterator[bytes]:
        """What is missing of a file that is partly written to `out`; where the server cannot go on, all, and `out` is emptied.

        Raises:
            Broken: the connection ended early, or there was none.
            TokError: the file has changed, or is gone.
        """
        try:
            answer = _open(remote.url, start=out.tell(), tag=remote.tag)
        except (Gone, Refused):
            raise
        except NotFound as error:
            raise Broken(error.got or error.why) from None
        with answer:
            if answer.status != 206:
                if _described(remote.url, answer) != remote:
                    raise changed(remote)
                _empty(out)
            elif not _goes_on(remote, answer, out.tell()):
                _empty(out)
                raise Broken("the server sent another part than was asked for")
            while True:
                try:
                    data = answer.read1(CHUNK)  # what has come, so that it is kept where the rest does not
                except (OSError, http.client.HTTPException) as error:
                    raise Broken(str(error)) from None
                if not data:
                    return
                yield data


def _empty(out: IO[bytes]) -> None:
    out.seek(0)
    out.truncate()


def _goes_on(remote: Remote, answer: Any, start: int) -> bool:
    """Whether a part of a file begins where the bytes before it end; raises TokError where it is of another file."""
    part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if _tag(answer) not in ("", remote.tag) or (part and part[2] not in ("*", str(remote.bytes))):
        raise changed(remote)  # If-Range asks for the whole file then, and not every server heeds it
    return part is not None and int(part[1]) == start


def _described(url: str, answer: Any) -> Remote:
    length, coded = answer.headers.get("Content-Length", ""), answer.headers.get("Content-Encoding") or "identity"
    if coded.lower() != "identity":
        what = "the server compresses it on the way"
        raise TokError(f"--data {url}", what, got=f"Content-Encoding: {coded}", next="Download the data first")
    if not length.isdigit():
        raise TokError(f"--data {url}", "the server does not say how long it is", next="Download the data first")
    return Remote(url, int(length), _tag(answer))


def _tag(answer: Any) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _open(url: str, method: str = "GET", start: int = 0, tag: str = "") -> Any:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-", "If-Range": tag} if start and tag else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        what = f"HTTP {error.code} {error.reason}"
        error.close()
        kind, next = NotFound, "Check the address"
        if error.code in (404, 410):
            kind = Gone
        elif error.code in BUSY:
            kind, next = Busy, "Repeat the command later"
        elif method == "HEAD" and error.code in (400, 403, 405, 501):
            kind = Refused
        raise kind(f"--data {url}", "the server does not give it", got=what, next=next) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", "") or error
        kind = Busy if isinstance(reason, TimeoutError | ConnectionResetError | http.client.HTTPException) else NotFound
        raise kind(
            f"--data {url}",
            "the server cannot be reached",
            why=str(reason) or type(error).__name__,
            next="Check the address and the network, then repeat the command",
        ) from None
