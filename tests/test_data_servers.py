"""Servers that answer otherwise than they should: the right bytes, or one line; never a file of two halves."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_data_fetching import left, shard

from tokcli.data import fetching, web_files
from tokcli.data.fetching import look, using
from tokcli.data.sources import BadImage, open_source
from tokcli.errors import NotFound, TokError

DATA, OTHER = shard(1, 2, 3), shard(4, 5, 6)
HALF = len(DATA) // 2


class Answer(NamedTuple):
    """A status (0: the connection is closed instead), headers, and a body, whose length is said unless the headers do."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""


def whole(data: bytes = DATA, upto: int | None = None, tag: str = '"1"') -> Answer:
    return Answer(200, {"ETag": tag, "Content-Length": str(len(data))}, data[:upto])


def part(data: bytes, start: int, said: str = "", tag: str = '"1"') -> Answer:
    return Answer(
        206, {"ETag": tag, "Content-Range": said or f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:]
    )


class Script:
    """A server that gives its answers to requests of a method in turn, the last one again and again."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {"HEAD": [whole()], "GET": [whole()]}
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.command, self.headers["Range"]))
                answers = outer.answers[self.command]
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if not answer.status:
                    return self.connection.close()
                self.send_response(answer.status)
                for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(answer.body)

            do_HEAD = do_GET

            def log_message(self, *arguments: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/a.tar"

    def fetched(self) -> bytes:
        with using(look(self.url)) as path:
            return path.read_bytes()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    made = Script()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize(
    "other",
    [
        part(OTHER, HALF, tag='"2"'),
        part(OTHER, HALF, f"bytes {HALF}-{len(DATA)}/{len(DATA) + 1}"),
        whole(OTHER, tag='"2"'),
    ],
    ids=["another tag", "another length", "the whole of another"],
)
def test_the_rest_of_another_file_is_never_put_behind_a_half(server: Script, other: Answer, tmp_path: Path) -> None:
    server.answers["GET"] = [whole(upto=HALF), other]
    with pytest.raises(TokError, match="has changed on the server since the start"):
        server.fetched()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "wrong",
    [
        part(DATA, 0),
        Answer(206, {"Content-Range": "bytes 0-9/*"}, DATA[: len(DATA) - HALF]),
        Answer(206, {}, DATA[HALF:]),
    ],
    ids=["all of it", "the first bytes", "nobody knows which"],
)
def test_a_part_that_was_not_asked_for_is_not_taken(server: Script, wrong: Answer) -> None:
    server.answers["GET"] = [whole(upto=HALF), wrong, whole()]
    assert server.fetched() == DATA and [asked for method, asked in server.asked if method == "GET"][2] is None


@pytest.mark.parametrize(
    "trouble", [Answer(500), Answer(503), Answer(429), Answer(0)], ids=lambda answer: str(answer.status)
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_server_in_trouble_is_asked_again(server: Script, method: str, trouble: Answer) -> None:
    server.answers[method] = [trouble, trouble, whole()]
    assert server.fetched() == DATA


def test_lasting_trouble_is_one_line_that_says_which(server: Script, tmp_path: Path) -> None:
    server.answers["GET"] = [whole(upto=HALF), Answer(503)]
    with pytest.raises(
        TokError, match=rf"in 3 tries: HTTP 503 Service Unavailable. Got {HALF:,} of {len(DATA):,} bytes"
    ):
        server.fetched()
    server.answers["HEAD"] = [Answer(503)]
    with pytest.raises(NotFound, match=r"does not give it. Got HTTP 503 Service Unavailable. Repeat the command later"):
        server.fetched()
    assert left(tmp_path) == []


def test_a_server_that_is_gone_in_the_middle_of_a_training_is_asked_three_times(
    server: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOK_CACHE_GB", str(len(DATA) / 10**9))
    source = open_source(server.url, size=8)
    folder = next((fetching.cache_dir() / "shards").glob("*/a.tar"))
    folder.unlink()
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(BadImage, match=r"did not arrive whole in 3 tries: .*refused"):
        source.image(0)


@pytest.mark.parametrize("status", [403, 405, 501])
def test_an_address_that_may_only_be_read_is_described_by_reading_it(server: Script, status: int) -> None:
    server.answers["HEAD"] = [Answer(status)]
    assert server.fetched() == DATA


def test_what_a_slow_server_has_sent_is_kept(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_files, "CHUNK", 10**9)  # more than ever comes
    server.answers["GET"] = [whole(upto=HALF), part(DATA, HALF)]
    assert server.fetched() == DATA and ("GET", f"bytes={HALF}-") in server.asked


def test_a_file_that_is_compressed_on_the_way_is_refused(server: Script) -> None:
    server.answers["HEAD"] = [Answer(200, {"Content-Encoding": "gzip", "Content-Length": "3"})]
    with pytest.raises(TokError, match=r"a.tar: the server compresses it on the way. Got Content-Encoding: gzip"):
        server.fetched()


def test_a_page_in_a_shards_place_is_named_by_its_address(server: Script) -> None:
    server.answers = {method: [whole(b"<html>Log in</html>" * 99)] for method in ("HEAD", "GET")}
    with pytest.raises(TokError, match=rf"--data {server.url}: not a plain tar"):
        open_source(server.url, size=8)
