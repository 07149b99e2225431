"""Shards in object stores, by fsspec or by a tool on PATH: the promises of web servers hold for them, too."""

import io
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem
from test_data_fetching import left, shard

from tokcli.data import fetching, object_stores
from tokcli.data.fetching import look, using
from tokcli.data.object_stores import CommandLine, FileSystem, transport
from tokcli.data.sources import open_source
from tokcli.errors import NotFound, TokError


class Bucket(AbstractFileSystem):  # type: ignore[misc]
    """An object store in memory: `broken` reads end with an error at half, `asked` records what was read from where."""

    protocol = "s3"
    files: dict[str, bytes] = {}
    broken = 0
    asked: list[tuple[str, int]] = []

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if path == "b/denied.tar":
            raise PermissionError("Forbidden")
        if path not in Bucket.files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(Bucket.files[path]), "type": "file", "ETag": f'"{hash(Bucket.files[path])}"'}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        data = Bucket.files[path]

        class Half(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                start = self.tell()
                Bucket.asked.append((path, start))
                if Bucket.broken and start >= len(data) // 2:
                    Bucket.broken -= 1
                    raise OSError("reset by peer")
                return super().read(max(1, len(data) // 2) if Bucket.broken else size)

        return Half(data)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    fsspec.register_implementation("s3", Bucket, clobber=True)
    Bucket.files, Bucket.broken, Bucket.asked = {}, 0, []
    yield Bucket
    _registry.pop("s3")


def test_shards_of_a_store_are_those_of_a_disk(bucket: type[Bucket], tmp_path: Path) -> None:
    for number in (0, 1):
        bucket.files[f"b/a-{number}.tar"] = shard(2 * number, 2 * number + 1)
        (tmp_path / f"a-{number}.tar").write_bytes(bucket.files[f"b/a-{number}.tar"])
    source, disk = open_source("s3://b/a-{0..1}.tar", size=8), open_source(f"{tmp_path}/a-{{0..1}}.tar", size=8)
    assert source.id == disk.id and open_source(source.name, size=8).id == source.id
    assert [int(source.image(i)[0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]


def test_a_later_start_fetches_nothing_again_and_another_file_is_fetched_anew(bucket: type[Bucket]) -> None:
    bucket.files["b/a.tar"] = shard(1)
    first = open_source("s3://b/a.tar", size=8).id
    read = len(bucket.asked)
    assert open_source("s3://b/a.tar", size=8).id == first and len(bucket.asked) == read
    bucket.files["b/a.tar"] = shard(2)
    assert open_source("s3://b/a.tar", size=8).id != first


def test_a_broken_download_goes_on_where_it_was(bucket: type[Bucket]) -> None:
    bucket.files["b/a.tar"], bucket.broken = shard(1, 2, 3), 1
    with using(look("s3://b/a.tar")) as file:
        assert file.read_bytes() == bucket.files["b/a.tar"]
    assert [start for _, start in bucket.asked[:3]] == [0, len(shard(1, 2, 3)) // 2, len(shard(1, 2, 3)) // 2]


def test_what_never_arrives_whole_is_one_line_and_leaves_nothing(bucket: type[Bucket], tmp_path: Path) -> None:
    bucket.files["b/a.tar"], bucket.broken = shard(1), 99
    with pytest.raises(TokError, match=r"s3://b/a.tar: did not arrive whole in 3 tries"):
        open_source("s3://b/a.tar", size=8)
    assert left(tmp_path) == []


def test_a_file_that_changes_while_it_is_fetched_is_refused(
    bucket: type[Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.files["b/a.tar"] = shard(1)
    remote, reading = look("s3://b/a.tar"), FileSystem.read

    def replaced(self: FileSystem, url: str, start: int) -> Iterator[bytes]:
        yield from reading(self, url, start)
        bucket.files["b/a.tar"] = shard(2)

    monkeypatch.setattr(FileSystem, "read", replaced)
    with pytest.raises(TokError, match="has changed on the server since the start"), using(remote):
        pass
    assert left(tmp_path) == []


def test_what_a_store_does_not_have_or_give_is_one_line(bucket: type[Bucket], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NotFound, match=r"s3://b/gone.tar: the store does not have it. Check the address"):
        open_source("s3://b/gone.tar", size=8)
    with pytest.raises(NotFound, match=r"s3://b/denied.tar: the store cannot be read: Forbidden"):
        open_source("s3://b/denied.tar", size=8)


TOOL = """#!{python}
import json, os, sys
words = sys.argv[1:]
if words[:2] == ["s3api", "head-object"]:
    path = os.path.join("{store}", words[2].removeprefix("--bucket="), words[3].removeprefix("--key="))
    if not os.path.exists(path):
        sys.exit("An error occurred (404) when calling the HeadObject operation: Not Found")
    print(json.dumps({{"ContentLength": os.path.getsize(path), "ETag": str(os.stat(path).st_mtime_ns)}}))
elif words[:3] == ["s3", "cp", "--quiet"] and words[4] == "-":
    data = open(os.path.join("{store}", words[3].removeprefix("s3://")), "rb").read()
    if os.path.exists("{store}/break"):
        os.remove("{store}/break")
        sys.stdout.buffer.write(data[: len(data) // 2])
        sys.exit(1)
    sys.stdout.buffer.write(data)
else:
    sys.exit(2)
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a fake `aws` on PATH serves as buckets, where fsspec has no package for them."""
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)

    def missing(scheme: str) -> type:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    (tmp_path / "bin").mkdir()
    (tmp_path / "store" / "b").mkdir(parents=True)
    script = tmp_path / "bin" / "aws"
    script.write_text(TOOL.format(python=sys.executable, store=tmp_path / "store"))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "store"


def test_a_tool_on_the_path_reads_a_store_that_fsspec_does_not(tool: Path, tmp_path: Path) -> None:
    (tool / "b" / "-x $(touch ran).tar").write_bytes(shard(1, 2))
    (tool / "break").touch()
    assert isinstance(transport("s3://b/a.tar"), CommandLine)
    source = open_source("s3://b/-x $(touch ran).tar", size=8)
    assert [int(source.image(i)[0, 0, 0]) for i in range(2)] == [1, 2] and not (tool / "break").exists()
    with pytest.raises(NotFound, match=r"s3://b/b.tar: the store does not have it"):
        open_source("s3://b/b.tar", size=8)
    assert not list(tmp_path.rglob("ran"))


def test_without_package_and_tool_one_line_says_what_to_install(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores.shutil, "which", lambda name: None)
    for scheme, wanted in {
        "s3": "s3fs, or install aws",
        "gs": "gcsfs, or install gcloud",
        "hf": "huggingface_hub",
    }.items():
        with pytest.raises(
            NotFound, match=rf"{scheme}: needs a package that is not installed. Run pip install {wanted}"
        ):
            open_source(f"{scheme}://b/a.tar", size=8)
