"""Files on web servers and what is said of files elsewhere: how long they are, and by which mark a change shows."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from tokcli.errors import NotFound, TokError

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20


class Remote(NamedTuple):
    """A file elsewhere as it was when it was looked at; `tag` is its ETag or a like mark, else its time of change, else ""."""

    url: str
    bytes: int
    tag: str


class Gone(NotFound):
    """A file that its server says it does not have: a copy in the cache is of another time."""


class Broken(Exception):
    """A connection that ended early: worth another try."""


def changed(remote: Remote) -> TokError:
    """What is said of a file that is not the one that was looked at."""
    return TokError(f"--data {remote.url}", "has changed on the server since the start", next="Repeat the command")


class Web:
    """Files at `https:` and `http:` addresses."""

    def look(self, url: str) -> Remote:
        """What a server says about a file.

        Raises:
            NotFound: the server cannot be reached, or does not have it (`Gone`).
            TokError: it does not say how long the file is.
        """
        with _open(url, "HEAD") as answer:
            return _described(url, answer)

    def rest(self, remote: Remote, out: IO[bytes]) -> Iterator[bytes]:
        """What is missing of a file that is partly written to `out`; where the server cannot go on, all, and `out` is emptied.

        Raises:
            Broken: the connection ended early.
            TokError: the file has changed.
        """
        with _open(remote.url, start=out.tell(), tag=remote.tag) as answer:
            if answer.status != 206:
                if _described(remote.url, answer) != remote:
                    raise changed(remote)
                out.seek(0)
                out.truncate()
            while True:
                try:
                    data = answer.read(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise Broken from error
                if not data:
                    return
                yield data


def _described(url: str, answer: Any) -> Remote:
    length = answer.headers.get("Content-Length", "")
    if not length.isdigit():
        raise TokError(f"--data {url}", "the server does not say how long it is", next="Download the data first")
    return Remote(url, int(length), answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


def _open(url: str, method: str = "GET", start: int = 0, tag: str = "") -> Any:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-", "If-Range": tag} if start and tag else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        what = f"HTTP {error.code} {error.reason}"
        error.close()
        raise (Gone if error.code in (404, 410) else NotFound)(
            f"--data {url}", "the server does not give it", got=what, next="Check the address"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = str(getattr(error, "reason", "") or error) or type(error).__name__
        raise NotFound(f"--data {url}", "the server cannot be reached", why=why) from None
