"""Where weights come from: a file the user names, the cache, an installed package or a hub, in this order."""

import contextlib
import io
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokcli.artifact.manifest import canonical_hash
from tokcli.data.sources.contents import known_sha256
from tokcli.errors import TokError
from tokcli.files import atomic_write, cache_dir, from_home, sha256

TIMEOUT = 5.0  # seconds without an answer after which a hub counts as unreachable


@dataclass(frozen=True)
class Source:
    """The places of one network's weights.

    Args:
        package: (import name, file inside it) of an installed package, which is located but not imported.
        package_sha: the first hexadecimal digits of that file's SHA-256.
        hub: (repository, file) on Hugging Face.
        url: a file that torch.hub would fetch; the hexadecimal digits before its suffix begin its SHA-256.
        command: what the user types where there is a network; None: made from hub or url.
    """

    package: tuple[str, str] | None = None
    package_sha: str = ""
    hub: tuple[str, str] | None = None
    url: str | None = None
    command: str | None = None

    def how_to_fetch(self) -> str:
        """The command or URL that gets the file."""
        if self.command:
            return self.command
        return f"hf download {self.hub[0]} {self.hub[1]}" if self.hub else str(self.url)


class Unreachable(Exception):
    """A hub did not answer, or has no such file; says which, in a few words."""


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, found without running its code."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def find_weights(name: str, source: Source, *, where: str, flag: str | None) -> Path:
    """The file of a network's weights.

    Args:
        name: the network's name; the cache holds `<name>.safetensors`.
        source: its other places.
        where: the beginning of an error line.
        flag: the option by which a user gives the file, or None where there is none.

    Raises:
        TokError: found nowhere, or the packaged file is not the one it should be.
    """
    cached = cache_dir() / f"{name.replace(':', '-').replace('/', '-')}.safetensors"
    if cached.is_file():
        return cached
    reason = ""
    if source.package:
        folder = package_folder(source.package[0])
        if folder and (folder / source.package[1]).is_file():
            path = folder / source.package[1]
            if not known_sha256(path).startswith(source.package_sha):
                raise TokError(where, f"{path} is damaged", next=f"Repeat: {source.how_to_fetch()}")
            return path
    try:
        if source.hub:
            return hugging_face(*source.hub)
        if source.url:
            return download(source.url)
    except Unreachable as error:
        reason = f" ({error})"
    advice = (
        f"Give {flag} PATH, or fetch" if flag else "Fetch"
    ) + f" them where there is a network: {source.how_to_fetch()}"
    raise TokError(where, f"weights not found{reason}", next=advice)


def weights_entry(files: Sequence[Path]) -> dict[str, str]:
    """The entry of files of weights among a manifest's inputs: named by their contents, wherever they lie.

    Raises:
        TokError: a file cannot be read.
    """
    digests = [known_sha256(file) for file in files]
    whole = digests[0] if len(digests) == 1 else canonical_hash(digests)
    return {"id": f"weights-{whole[:12]}", "path": str(files[0].absolute())}


def download(url: str) -> Path:
    """A file by URL, from torch.hub's folder or ours if it is there already.

    Raises:
        Unreachable: no answer, no such file, or other content than its name says.
    """
    name = url.rsplit("/", 1)[-1]
    torch_home = from_home(os.environ.get("TORCH_HOME") or "~/.cache/torch")
    ours = cache_dir() / "hub" / name
    for path in (torch_home / "hub" / "checkpoints" / name, ours):
        if path.is_file():
            return path
    ours.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("tok").info("fetching %s", url)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic_write(ours) as tmp:
            with open(tmp, "wb") as file:
                while piece := answer.read(1 << 20):
                    file.write(piece)
            expected = name.rsplit(".", 1)[0].rsplit("-", 1)[-1]
            named = len(expected) == 8 and set(expected) <= set("0123456789abcdef")
            if named and not sha256(tmp).startswith(expected):
                raise Unreachable("hub sent a damaged file")
    except urllib.error.HTTPError as error:
        raise Unreachable(f"hub answered {error.code}") from None
    except OSError:  # URLError and timeouts are OSErrors
        raise Unreachable("hub unreachable") from None
    return ours


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # hub clients log retries and draw progress bars; our one line says all
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx", "httpcore")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def hugging_face(repository: str, file: str) -> Path:
    """A file of a Hugging Face repository, from its cache if it is there already.

    Raises:
        Unreachable: no answer, or no such file.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    with _quiet():
        with contextlib.suppress(Exception):
            return Path(hf_hub_download(repository, file, local_files_only=True))
        if constants.HF_HUB_OFFLINE:
            raise Unreachable("hub unreachable: HF_HUB_OFFLINE is set")
        # the client retries for half a minute: ask once ourselves first
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT).close()
        except urllib.error.HTTPError:
            pass  # it answered
        except OSError:
            raise Unreachable("hub unreachable") from None
        try:
            return Path(hf_hub_download(repository, file))
        except LocalEntryNotFoundError:
            raise Unreachable("hub unreachable") from None
        except (EntryNotFoundError, RepositoryNotFoundError):
            raise Unreachable(f"hub has no {repository}/{file}") from None
        except Exception as error:  # the client's transports raise classes of their own
            raise Unreachable(f"hub unreachable: {type(error).__name__}") from None
