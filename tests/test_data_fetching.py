"""Shards from a web server that is slow, breaks off and changes its files: whole or not at all, and one line where it fails."""

import http.server
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokcli.data import fetching
from tokcli.data.fetching import look, using
from tokcli.data.sources import BadImage, open_source
from tokcli.data.web_files import Remote
from tokcli.errors import NotFound, TokError


class Server:
    """Files by name; `broken` answers are cut at half, and `asked` records method, name and range of each."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.broken, self.asked, self.ranges = 0, list[tuple[str, str, str]](), True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(False)

            def do_GET(self) -> None:
                self.answer(True)

            def answer(self, body: bool) -> None:
                name, wanted = self.path.strip("/"), self.headers.get("Range", "")
                outer.asked.append((self.command, name, wanted))
                if name not in outer.files:
                    self.send_error(404)
                    return
                data, tag = outer.files[name], f'"{hash(outer.files[name])}"'
                start = int(wanted[6:-1]) if wanted and outer.ranges and self.headers["If-Range"] == tag else 0
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("ETag", tag)
                self.end_headers()
                if body and outer.broken:
                    outer.broken -= 1
                    data = data[: start + (len(data) - start) // 2]
                if body:
                    self.wfile.write(data[start:])

            def log_message(self, *arguments: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    made = Server()
    yield made
    made.stop()


def shard(*shades: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for shade in shades:
            picture = io.BytesIO()
            Image.new("L", (4, 4), shade).save(picture, "PNG")
            for name, data in ((f"{shade}.png", picture.getvalue()), (f"{shade}.cls", b"%d" % (shade % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def local(remote: Remote) -> Path:
    with using(remote) as path:
        return path


def left(tmp_path: Path) -> list[str]:
    return sorted(
        p.name for p in (tmp_path / "cache" / "shards").rglob("*") if p.is_file() and p.name not in (".lock", ".taken")
    )


def test_shards_of_a_server_are_those_of_a_disk(server: Server, tmp_path: Path) -> None:
    for number in (0, 1):
        server.files[f"a-{number}.tar"] = shard(2 * number, 2 * number + 1)
        (tmp_path / f"a-{number}.tar").write_bytes(server.files[f"a-{number}.tar"])
    source, disk = (
        open_source(f"{server.url}/a-{{0..1}}.tar", size=8),
        open_source(f"{tmp_path}/a-{{0..1}}.tar", size=8),
    )
    assert source.id == disk.id and [source.key(i) for i in range(4)] == [disk.key(i) for i in range(4)]
    again = pickle.loads(pickle.dumps(source))
    assert [int(again.image(i)[0, 0, 0]) for i in range(4)] == [0, 1, 2, 3] and source.label(3) == 1


def packed(server: Server, tmp_path: Path) -> Path:
    """Two shards of numbered classes, packed from a folder and put on the server with their indexes; returns where they lie."""
    from tokcli.stages import pack_data

    for i, name in enumerate(["0", "1", "10", "2"]):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("L", (4, 4), i).save(tmp_path / "photos" / name / f"{i}.png")
    pack_data.main(
        str(tmp_path / "photos"), tmp_path / "pack", labels=None, size=8, shard_bytes=150, max_bad=0, max_pixels=10**6
    )
    server.files |= {
        path.name: path.read_bytes() for path in (tmp_path / "pack").iterdir() if path.name.startswith("shard")
    }
    assert len(server.files) == 4
    return tmp_path / "pack"


def test_a_pack_on_a_server_is_that_of_the_disk_and_its_shards_are_not_fetched_before_they_are_read(
    server: Server, tmp_path: Path
) -> None:
    disk = open_source(str(packed(server, tmp_path)), size=8)
    source = open_source(f"{server.url}/shard-{{00000..00001}}.tar", size=8)
    assert source.id == disk.id and source.classes == disk.classes == ["0", "1", "10", "2"]
    assert [source.label(i) for i in range(4)] == [0, 1, 2, 3] and len(source) == 4
    got = [name for method, name, _ in server.asked if method == "GET"]
    assert "shard-00001.tar" not in got and "shard-00001.index.json" in got
    looked = [name for method, name, _ in server.asked if method == "HEAD"]
    assert sorted(looked) == sorted(
        f"shard-0000{n}.{end}" for n in (0, 1) for end in ("tar", "index.json")
    )  # once each
    assert int(source.image(3)[0, 0, 0]) == 3


def test_a_shard_that_is_not_its_indexs_is_refused_when_it_arrives_and_asked_for_once(
    server: Server, tmp_path: Path
) -> None:
    packed(server, tmp_path)
    source = open_source(f"{server.url}/shard-{{00000..00001}}.tar", size=8)
    old = server.files["shard-00001.tar"]
    server.files["shard-00001.tar"] = old.replace(b"2/3.png", b"2/X.png")  # as long as it was
    again = open_source(f"{server.url}/shard-{{00000..00001}}.tar", size=8)
    assert again.id == source.id
    for i in (2, 3):
        with pytest.raises(
            BadImage, match="shard-00001.tar: is not the shard that its index describes. Pack the data again"
        ):
            again.image(i)
    assert [name for method, name, _ in server.asked if method == "GET"].count("shard-00001.tar") == 1


def test_a_pack_whose_indexes_are_missing_or_of_other_shards_has_the_same_classes_and_id(
    server: Server, tmp_path: Path
) -> None:
    disk = open_source(str(packed(server, tmp_path)), size=8)
    spec = f"{server.url}/shard-{{00000..00001}}.tar"
    server.files["shard-00001.index.json"] = server.files["shard-00000.index.json"].replace(b'"bytes"', b'"byte"')
    stale = open_source(spec, size=8)
    assert (stale.id, stale.classes) == (disk.id, disk.classes) and stale.notes  # type: ignore[attr-defined]
    del server.files["shard-00000.index.json"]
    bare = open_source(spec, size=8)
    assert (bare.id, bare.classes, bare.notes) == (disk.id, disk.classes, [])  # type: ignore[attr-defined]


def test_a_later_start_fetches_nothing_again(server: Server) -> None:
    server.files["a.tar"] = shard(1)
    for _ in range(2):
        open_source(f"{server.url}/a.tar", size=8).image(0)
    asked = [method for method, name, _ in server.asked if name == "a.tar"]
    assert asked == ["HEAD", "GET", "HEAD"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_gone_on_with(server: Server, ranges: bool) -> None:
    server.files["a.tar"], server.broken, server.ranges = shard(1, 2, 3), 2, ranges
    file = local(look(f"{server.url}/a.tar"))
    assert file.read_bytes() == server.files["a.tar"]
    assert [bool(wanted) for method, _, wanted in server.asked if method == "GET"] == [False, True, True]


def test_what_never_arrives_whole_is_one_line_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"], server.broken = shard(1), 99
    with pytest.raises(TokError, match=r"a.tar: did not arrive whole in 3 tries. Got [\d,]+ of 10,240 bytes. Repeat"):
        open_source(f"{server.url}/a.tar", size=8)
    assert left(tmp_path) == []
    server.broken = 0
    assert len(open_source(f"{server.url}/a.tar", size=8)) == 1


def test_another_file_under_the_same_name_is_fetched_anew_at_a_start(server: Server) -> None:
    server.files["a.tar"] = shard(1)
    first = open_source(f"{server.url}/a.tar", size=8).id
    server.files["a.tar"] = shard(2)
    assert len(server.files["a.tar"]) == len(shard(1))
    changed = open_source(f"{server.url}/a.tar", size=8)
    assert changed.id != first and int(changed.image(0)[0, 0, 0]) == 2


def test_another_file_while_it_is_read_is_refused_by_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files |= {"a.tar": shard(1), "b.tar": shard(2)}
    monkeypatch.setenv("TOK_CACHE_GB", str(10_240 / 10**9))  # room for one
    source = open_source(f"{server.url}/{{a,b}}.tar", size=8)
    source.image(0), source.image(1)  # now the second is there
    server.files["a.tar"] = shard(3)
    with pytest.raises(BadImage, match=r"a.tar: has changed on the server since the start"):
        source.image(0)


def test_a_cache_that_is_too_small_holds_what_was_used_last_and_all_is_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files |= {f"a-{i}.tar": shard(i) for i in range(4)}
    monkeypatch.setenv("TOK_CACHE_GB", str(2 * 10_240 / 10**9))
    source = open_source(f"{server.url}/a-{{0..3}}.tar", size=8)
    assert [int(source.image(i)[0, 0, 0]) for i in (0, 3, 1, 2, 0)] == [0, 3, 1, 2, 0]
    assert [name for name in left(tmp_path) if name.endswith(".tar")] == ["a-0.tar", "a-2.tar"]


def test_a_file_larger_than_the_cache_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["a.tar"] = shard(1)
    monkeypatch.setenv("TOK_CACHE_GB", "0.000001")
    with pytest.raises(TokError, match="is larger than the cache"):
        open_source(f"{server.url}/a.tar", size=8)


def test_without_a_server_the_cache_is_read_and_what_is_not_there_is_one_line(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.files |= {"a.tar": shard(1), "d.tar": shard(2)}
    first = open_source(f"{server.url}/{{a,d}}.tar", size=8).id
    with pytest.raises(NotFound, match=r"b.tar: the server does not give it. Got HTTP 404"):
        open_source(f"{server.url}/b.tar", size=8)
    server.stop()
    assert open_source(f"{server.url}/{{a,d}}.tar", size=8).id == first
    assert caplog.text.count("Copies in the cache are read") == 1
    with pytest.raises(NotFound, match=r"c.tar: the server cannot be reached"):
        open_source(f"{server.url}/c.tar", size=8)


def test_a_damaged_copy_is_fetched_again(server: Server) -> None:
    server.files["a.tar"] = shard(1)
    remote = look(f"{server.url}/a.tar")
    local(remote).write_bytes(b"half")
    assert local(remote).read_bytes() == server.files["a.tar"]


def test_what_a_killed_process_left_is_removed_before_it_fills_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files |= {"a.tar": shard(1), "b.tar": shard(2)}
    half = f".a.tar.{'x' * 8}.tmp", fetching.COMING
    for wanted in ("a", "b"):  # the same again, and another that needs its room
        folder = local(look(f"{server.url}/a.tar")).parent
        (
            (folder / fetching.META).unlink(),
            (folder / half[0]).write_bytes(b"half"),
            (folder / half[1]).write_text("10240"),
        )
        monkeypatch.setenv("TOK_CACHE_GB", str(10_240 / 10**9))
        (folder.parent / fetching.TAKEN).unlink()
        assert local(look(f"{server.url}/{wanted}.tar")).read_bytes() == server.files[f"{wanted}.tar"]
        assert not [*(tmp_path / "cache").rglob("*.tmp")]


def test_processes_that_ask_at_once_fetch_once(server: Server) -> None:
    server.files["a.tar"] = shard(1)
    remote = look(f"{server.url}/a.tar")
    threads = [threading.Thread(target=local, args=(remote,)) for _ in range(5)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert [method for method, _, _ in server.asked].count("GET") == 1


def test_a_full_disk_is_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["a.tar"] = shard(1)

    def full(remote: Remote, out: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "_download", full)
    with pytest.raises(TokError, match="the disk is full"):
        open_source(f"{server.url}/a.tar", size=8)


@pytest.mark.parametrize(
    "spec",
    [
        "s3://b/a.zip",
        "az://b/a.tar",
        "s3://b/a.tar::file:///etc/x.tar",
        "memory://a.tar",
        "simplecache::s3://b/a.tar",
        "pipe:touch ran.tar",
        "file:///etc/a.tar",
        "ftp://x/a.tar",
        "https://x/a.zip",
    ],
)
def test_nothing_else_is_opened(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokError, match="only tars at s3, gs, hf and https addresses are read, and no pipes"):
        open_source(spec, size=8)
    assert not list(tmp_path.iterdir())
