"""Webdataset tars: what is read, what is never decoded, and how damage is told."""

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tokcli.data.sources import open_source
from tokcli.data.sources.summary import one_line
from tokcli.data.sources.tar_index import index_tar
from tokcli.errors import TokError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (6, 4), shade).save(file, "PNG")
    return file.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shard(path: Path, first: int, count: int) -> Path:
    members: dict[str, bytes] = {}
    for i in range(first, first + count):
        members |= {f"{i:03d}.png": picture(i), f"{i:03d}.cls": str(i % 3).encode(), f"{i:03d}.txt": b"number %d" % i}
    return write(path, members)


def test_braces_open_shards_in_order(tmp_path: Path) -> None:
    for n in range(3):
        shard(tmp_path / f"a-{n:03d}.tar", 4 * n, 4)
    source = open_source(f"{tmp_path}/a-{{000..002}}.tar", size=8)
    assert (len(source), source.key(5), source.label(5)) == (12, "a-001/005", 2)
    assert source.image(5).unique().tolist() == [5] and source.captions(5) == ["number 5"]
    assert (source.classes, source.problems) == (["0", "1", "2"], [])


def test_class_names_are_ranked_and_json_serves_too(tmp_path: Path) -> None:
    image = picture()
    write(
        tmp_path / "a.tar",
        {
            "1.png": image,
            "1.cls": b"dog\n",
            "2.png": image,
            "2.json": b'{"cls": "cat", "caption": "c"}',
            "2.txt": b"c",
            "3.png": image,
        },
    )
    source = open_source(str(tmp_path / "a.tar"), size=8)
    assert [source.label(i) for i in range(3)] == [1, 0, -1]
    assert [source.captions(i) for i in range(3)] == [[], ["c"], []]


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickles_in_a_tar_are_never_decoded_but_counted_and_named(tmp_path: Path) -> None:
    payload = pickle.dumps(Touch(tmp_path / "ran"))
    names = ("1.pkl", "1.pyd", "1.pth", "1.npy", "2.pkl")
    write(tmp_path / "a.tar", {"1.png": picture(), **{name: payload for name in names}})
    source = open_source(str(tmp_path / "a.tar"), size=8)
    source.image(0), source.captions(0)
    assert not (tmp_path / "ran").exists() and len(source) == 1
    pickle.loads(payload)
    assert (tmp_path / "ran").exists()  # so the trap would have worked
    assert "; not read: 2 (.pkl), 1 (.pyd), 1 (.pth), 1 (.npy)" in one_line(source)


def test_links_and_devices_are_not_followed_and_nothing_is_extracted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("1.png", tarfile.SYMTYPE),
            ("2.png", tarfile.LNKTYPE),
            ("3.png", tarfile.CHRTYPE),
            ("5.png", tarfile.GNUTYPE_SPARSE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../4.png")
        info.size = len(picture())
        tar.addfile(info, io.BytesIO(picture()))
    source = open_source(str(tmp_path / "a.tar"), size=8)
    assert len(source) == 1 and source.ignored == {"link": 2, "device": 1, "sparse file": 1}  # type: ignore[attr-defined]
    assert source.image(0).shape == (3, 4, 6) and not list(tmp_path.parent.glob("4.png"))


@pytest.mark.parametrize("cut", ["inside a member", "between members", "inside a header"])
def test_a_tar_cut_short_gives_what_is_whole_and_says_so(tmp_path: Path, cut: str) -> None:
    path = shard(tmp_path / "a.tar", 0, 20)
    with tarfile.open(path) as tar:
        member = tar.getmember("010.png")
    place = {
        "inside a member": member.offset_data + 10,
        "between members": member.offset,
        "inside a header": member.offset + 99,
    }
    path.write_bytes(path.read_bytes()[: place[cut]])
    source = open_source(str(path), size=8)
    assert len(source) == 10 and source.image(9).unique().tolist() == [9]
    assert any("a.tar" in key and ("cut short" in why or "ends inside" in why) for key, why in source.problems)


def test_a_hole_of_zeros_in_a_tar_is_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", 0, 20)
    with tarfile.open(path) as tar:
        start = tar.getmember("010.png").offset
    data = bytearray(path.read_bytes())
    data[start : start + 2048] = bytes(2048)
    path.write_bytes(data)
    source = open_source(str(path), size=8)
    assert len(source) == 10
    assert source.problems == [("a.tar", f"zeros at byte {start}, then data that no reader reaches")]


def test_a_damaged_image_is_bad_when_it_is_read(tmp_path: Path) -> None:
    from tokcli.data.sources import BadImage

    write(tmp_path / "a.tar", {"1.png": picture()[:40], "2.png": picture()})
    source = open_source(str(tmp_path / "a.tar"), size=8)
    with pytest.raises(BadImage, match="a/1"):
        source.image(0)


def test_doubles_and_texts_without_an_image_are_problems(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("1.png", picture(1)), ("1.png", picture(2)), ("2.txt", b"alone")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(str(tmp_path / "a.tar"), size=8)
    assert len(source) == 1 and source.image(0).unique().tolist() == [1]
    assert source.problems == [("a.tar/1", "a second 1.png is not read"), ("a.tar/2", "no image beside its texts")]


def test_the_index_is_cached_until_the_tar_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokcli.data.sources.kept.RACY", 0)
    path = shard(tmp_path / "a.tar", 0, 2)
    first = open_source(str(path), size=8)
    assert len(list(cache.glob("tar-index-*/*.json"))) == 1
    assert open_source(str(path), size=8).id == first.id
    shard(path, 0, 3)
    assert len(open_source(str(path), size=8)) == 3


def test_a_tar_whose_name_is_no_utf_8_is_indexed_as_any_other(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokcli.data.sources.kept.RACY", 0)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar"))
    shard(path, 0, 2)
    assert len(open_source(str(path), size=8)) == len(open_source(str(path), size=8)) == 2
    assert len(list(cache.glob("tar-index-*/*.json"))) == 1


@pytest.mark.parametrize("damaged", ["{", "[]", '{"keys": 1, "x": 2}', "null"])
def test_a_damaged_index_is_made_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setattr("tokcli.data.sources.kept.RACY", 0)
    path = shard(tmp_path / "a.tar", 0, 2)
    index_tar(path)
    (file,) = cache.glob("tar-index-*/*.json")
    file.write_text(damaged)
    assert len(index_tar(path).keys) == 2


def test_the_id_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    ids = set()
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        ids.add(open_source(str(shard(tmp_path / name / "a.tar", 0, 3)), size=8).id)
    assert len(ids) == 1


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, bytes(10240)])
def test_what_is_no_tar_of_images_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(TokError, match=r"a.tar: (not a plain tar|no images found)"):
        open_source(str(tmp_path / "a.tar"), size=8)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(TokError, match="Decompress it"):
        open_source(str(tmp_path / "a.tar.gz"), size=8)


@pytest.mark.parametrize(
    "spec", ["pipe:touch ran", "pipe:touch ran #.tar", "http://x/{0..1}.tar", "{pipe:touch ran,b}.tar"]
)
def test_pipes_and_urls_are_refused_and_not_run(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokError):
        open_source(spec, size=8)
    assert not (tmp_path / "ran").exists()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "a-0.tar", 0, 1)
    with pytest.raises(TokError, match=r"a-1.tar: no such file"):
        open_source(f"{tmp_path}/a-{{0..1}}.tar", size=8)


def test_members_with_dots_before_the_extension_are_problems_that_say_why(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1.png": picture(), **{f"photo.v{i}.jpg": picture() for i in range(3)}})
    source = open_source(str(tmp_path / "a.tar"), size=8)
    assert len(source) == 1 and [key for key, _ in source.problems] == [f"a.tar/photo.v{i}.jpg" for i in range(3)]
    assert source.problems[0][1] == "a key ends at the first dot: .v0.jpg is no image's extension"


def test_what_macos_packs_beside_members_is_counted_and_no_problem(tmp_path: Path) -> None:
    hidden = {"a/._1.png": b"x", "._2.cls": b"3", ".DS_Store": b"x", "./a/._": b""}
    source = open_source(str(write(tmp_path / "a.tar", hidden | {"a/1.png": picture(), "2.png": picture()})), size=8)
    assert source.problems == [] and [source.label(i) for i in range(2)] == [-1, -1]
    assert source.ignored == {"file whose name begins with a dot": 4}  # type: ignore[attr-defined]


def test_a_second_picture_of_a_sample_is_counted_and_no_problem(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "a.tar", {"1.png": picture(), "1.mask.png": picture()})), size=8)
    assert source.problems == [] and source.ignored == {".mask.png": 1}  # type: ignore[attr-defined]


def test_a_thousand_kinds_of_members_are_one_short_line(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1.png": picture(), **{f"1.kind{i}": b"" for i in range(1000)}})
    said = one_line(open_source(str(tmp_path / "a.tar"), size=8))
    assert "not read: 1 (.kind0), " in said and "and 994 more kinds" in said and len(said) < 600


@pytest.mark.parametrize("name", ["1.jfif", "1.JPE", "1.gif", "1.bmp", "1.tiff"])
def test_images_of_a_tar_have_the_extensions_of_a_folder(tmp_path: Path, name: str) -> None:
    assert len(open_source(str(write(tmp_path / "a.tar", {name: picture()})), size=8)) == 1


def test_images_that_nothing_reads_are_problems(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "a.tar", {"1.png": picture(), "2.heic": b"x", "3.jxl": b"x"})), size=8)
    assert source.problems == [
        (f"a.tar/{name}", f"images of type .{name[2:]} are not read") for name in ("2.heic", "3.jxl")
    ]


@pytest.mark.parametrize("spec", ["j-*.tar", "j-[12].tar", "", "j-{1,2}.tar"])
def test_stars_braces_and_folders_of_tars_are_shards(tmp_path: Path, spec: str) -> None:
    (tmp_path / "d").mkdir()
    for n in (2, 1):
        shard(tmp_path / "d" / f"j-{n}.tar", 4 * n, 2)
    source = open_source(f"{tmp_path}/d/{spec}", size=8)
    assert [source.key(i) for i in range(4)] == ["j-1/004", "j-1/005", "j-2/008", "j-2/009"]
    assert open_source(source.name, size=8).id == source.id


def test_a_star_that_fits_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(TokError, match=r"no file is named like .*j-\*.tar"):
        open_source(f"{tmp_path}/j-*.tar", size=8)


def test_shards_of_one_name_in_two_folders_keep_their_keys_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        shard(tmp_path / name / "a.tar", 0, 1)
    source = open_source(f"{tmp_path}/{{x,y}}/a.tar", size=8)
    assert [source.key(i) for i in range(2)] == ["x/a/000", "y/a/000"]


def test_a_picture_replaced_in_place_is_other_data(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", 0, 3)
    first = open_source(str(path), size=8).id
    data = path.read_bytes()
    path.write_bytes(data.replace(picture(1), picture(1)[:-1] + b"x"))
    assert open_source(str(path), size=8).id != first
    path.write_bytes(data)
    assert open_source(str(path), size=8).id == first


def test_past_the_bound_the_time_of_a_shard_stands_for_its_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokcli.data.sources.tars.CONTENTS_UP_TO", 0)
    path = shard(tmp_path / "a.tar", 0, 3)
    first = open_source(str(path), size=8).id
    (tmp_path / "copy").mkdir()
    shutil.copy2(path, tmp_path / "copy")
    assert open_source(str(tmp_path / "copy" / "a.tar"), size=8).id == first
    os.utime(path, ns=(1, 1))
    assert open_source(str(path), size=8).id != first


def test_tars_of_a_folder_are_read_in_any_case_and_compressed_ones_counted(tmp_path: Path) -> None:
    for name in ("a.tar", "b.TAR", "c.tar.gz", "d.tgz"):
        write(tmp_path / name, {"1.png": picture()})
    source = open_source(str(tmp_path), size=8)
    assert len(source) == 2 and source.ignored == {".tar.gz": 1, ".tgz": 1}
