"""Files in object stores: by fsspec, where it can reach the store, else by the store's command-line tool; no shell, no pipe."""

import json
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple, Protocol

from tokcli.data.web_files import CHUNK, Broken, Gone, Remote, Web, changed
from tokcli.errors import NotFound, TokError

# What tells one content of a file from another, the surest first; a store says some of them.
TAGS = tuple("etag generation md5hash crc32c crc32c_hash blob_id lastmodified last_modified mtime created".split())
BLOCK = 16 << 20  # bytes that are asked for at once


class Transport(Protocol):
    """A way to files of one kind of address; see `Web` for what the two do and raise."""

    def look(self, url: str) -> Remote:
        """Length and mark of a file."""

    def rest(self, remote: Remote, out: IO[bytes]) -> Iterator[bytes]:
        """What is missing of a file in `out`."""


class Tool(NamedTuple):
    """A store's command-line tool: the commands that describe a file as JSON and that write it to stdout; {} are parts of the address."""

    describe: Sequence[str]
    read: Sequence[str]


class Store(NamedTuple):
    """The package by which fsspec reaches a store, and its tool, if it has one that needs no download folder."""

    package: str
    tool: Tool | None


STORES = {
    "s3": Store(
        "s3fs",
        Tool(
            ("aws", "s3api", "head-object", "--bucket={bucket}", "--key={key}", "--output=json"),
            ("aws", "s3", "cp", "--quiet", "{url}", "-"),
        ),
    ),
    "gs": Store(
        "gcsfs",
        Tool(
            ("gcloud", "storage", "objects", "describe", "{url}", "--format=json"),
            ("gcloud", "storage", "cat", "{url}"),
        ),
    ),
    "hf": Store("huggingface_hub", None),
}
SCHEMES = ("https", "http", *STORES)


def readable(url: str) -> bool:
    """Whether an address is of a kind that is read; chains of file systems (`::`) are not."""
    scheme, found, _ = url.partition("://")
    return bool(found) and scheme in SCHEMES and "::" not in url


def transport(url: str) -> Transport:
    """How the files of an address are reached.

    Raises:
        TokError: neither the package nor the tool is there.
    """
    scheme = url.partition("://")[0]
    if scheme not in STORES:
        return Web()
    store = STORES[scheme]
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
        return FileSystem()
    except (ImportError, ValueError):
        pass
    if store.tool is not None and shutil.which(store.tool.read[0]):
        return CommandLine(store.tool)
    or_tool = f", or install {store.tool.read[0]}" if store.tool else ""
    raise NotFound(
        f"--data {url}",
        f"{scheme}: needs a package that is not installed",
        next=f"Run pip install {store.package}{or_tool}",
    )


class _Checked:
    """What both ways share: a file is looked at before and after it is read, since no read can be tied to one content."""

    resumes = True

    def rest(self, remote: Remote, out: IO[bytes]) -> Iterator[bytes]:
        """What is missing of a file that is partly written to `out`; raises Broken, and TokError where it has changed."""
        self._same(remote)
        if not self.resumes:
            out.seek(0)
            out.truncate()
        yield from self.read(remote.url, out.tell())
        self._same(remote)

    def _same(self, remote: Remote) -> None:
        try:
            if self.look(remote.url) != remote:
                raise changed(remote)
        except NotFound as error:
            raise Broken(error.got or error.why) from None

    def look(self, url: str) -> Remote:
        """Length and mark of a file; raises NotFound (`Gone` where the store does not have it)."""
        raise NotImplementedError

    def read(self, url: str, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start`; raises Broken."""
        raise NotImplementedError


class FileSystem(_Checked):
    """Files that fsspec reaches, with the credentials that the store's own package finds."""

    def look(self, url: str) -> Remote:
        """Length and mark of a file."""
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(url)
            system.invalidate_cache()  # it remembers what files were like
            return _remote(url, system.info(path))
        except FileNotFoundError:
            raise _gone(url) from None
        except TokError:
            raise
        except Exception as error:  # each store raises its own
            raise NotFound(
                f"--data {url}",
                "the store cannot be read",
                why=_line(error),
                next="Check the address, and the credentials that the store needs",
            ) from None

    def read(self, url: str, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start`."""
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(url)
            with system.open(path, "rb", block_size=BLOCK) as file:
                file.seek(start)
                while data := file.read(CHUNK):
                    yield data
        except Exception as error:
            raise Broken(_line(error)) from None


class CommandLine(_Checked):
    """Files that a store's command-line tool reaches; a download that broke off begins anew."""

    resumes = False

    def __init__(self, tool: Tool) -> None:
        self.tool = tool

    def look(self, url: str) -> Remote:
        """Length and mark of a file."""
        done = subprocess.run(
            _command(self.tool.describe, url), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            if any(word in done.stderr for word in ("404", "Not Found", "NoSuchKey", "not found")):
                raise _gone(url)
            raise NotFound(
                f"--data {url}",
                f"{self.tool.describe[0]} cannot read it",
                why=why,
                next="Check the address, and the credentials that the store needs",
            )
        try:
            return _remote(url, json.loads(done.stdout))
        except (ValueError, AttributeError):
            raise NotFound(
                f"--data {url}",
                f"{self.tool.describe[0]} does not describe it",
                got=done.stdout[:60],
                next=f"Update {self.tool.describe[0]}, or install fsspec: pip install 'tokcli[stores]'",
            ) from None

    def read(self, url: str, start: int) -> Iterator[bytes]:
        """The bytes of a file, all of them."""
        command = _command(self.tool.read, url)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        ) as running:
            assert running.stdout is not None
            try:
                while data := running.stdout.read(CHUNK):
                    yield data
            except BaseException:  # nobody wants the rest
                running.kill()
                raise
        if running.returncode:
            raise Broken(f"{command[0]} ended with exit code {running.returncode}")


def _command(words: Sequence[str], url: str) -> list[str]:
    address = urllib.parse.urlsplit(url, allow_fragments=False)
    parts = {"url": url, "bucket": address.netloc, "key": url.partition("://")[2].partition("/")[2]}
    return [word.format(**parts) for word in words]


def _remote(url: str, said: dict[str, Any]) -> Remote:
    """From a store's description of a file, in whichever words."""
    known = {name.lower(): value for name, value in said.items()}
    size = known.get("size", known.get("contentlength"))
    if not str(size).isdigit():
        raise TokError(f"--data {url}", "the store does not say how long it is", next="Download the data first")
    tags = [str(known[name]) for name in TAGS if known.get(name) not in (None, "")]
    return Remote(url, int(str(size)), tags[0] if tags else "")


def _gone(url: str) -> Gone:
    return Gone(f"--data {url}", "the store does not have it", next="Check the address")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
