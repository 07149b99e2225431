"""The codebook's page in a real browser: it opens from disk, answers search, pointer, keys and small screens."""

import json
import re

import numpy as np
import pytest
import torch
from browser import Browser, browser  # noqa: F401  the fixture
from PIL import Image

from tokcli.codebook import page as pages
from tokcli.codebook.page import write_page
from tokcli.codebook.view import Codebook, see

NAMES = [f"picture {i}" for i in range(12)]


def book(name, k, grid, seed, images):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(0, k - 1, (len(images), grid * grid), generator=generator)  # the last code is never used
    labels = torch.arange(len(images)) % 2
    codes = torch.randn(k, 4, generator=generator)
    distances = torch.rand(indices.shape, generator=generator)
    return see(name, images, indices, labels, (grid, grid), codes, distances, perplexity=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`one/index.html` of a tokenizer and `two/index.html` of two, on the same twelve images."""
    root = tmp_path_factory.mktemp("pages")
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    books = [book("<i>first</i>", 9, 4, 1, images), book("second", 6, 2, 2, images)]
    for name, shown in (("one", books[:1]), ("two", books)):
        (root / name).mkdir()
        write_page(
            root / name, shown, torch.arange(12) % 2, NAMES, ["cat & mouse", "dog"],
            perplexities=[4.0] * len(shown), context=2, title=" and ".join(b.name for b in shown),
        )  # fmt: skip
    return root, books


@pytest.fixture
def one(browser: Browser, folder) -> Browser:  # noqa: F811
    browser.open(folder[0] / "one" / "index.html")
    return browser


def codes_shown(page):
    return [int(n) for n in page.run("return [...document.querySelectorAll('.codes .tile')].map(n => n.dataset.item)")]


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_page_opens_from_disk_without_an_error_or_a_request_elsewhere(browser, folder, name):  # noqa: F811
    browser.open(folder[0] / name / "index.html")
    assert browser.errors() == []
    assert browser.requests() and all(re.match(r"(file|data):", url) for url in browser.requests())


def test_every_code_and_image_is_there_and_names_are_text(one):
    assert sorted(codes_shown(one)) == list(range(9))
    assert one.texts("h2")[0] == "<i>first</i>: 9 codes"
    assert one.run("return document.querySelectorAll('.photo').length") == 12


@pytest.mark.parametrize(
    ("text", "fits"),
    [("3", lambda c, b: c == 3), ("5-", lambda c, b: c >= 5), ("7,", lambda c, b: c == 7), ("2-4, 7", lambda c, b: c in (2, 3, 4, 7)), ("> 20", lambda c, b: b.counts[c] > 20),
     ("MOUSE", lambda c, b: b.purity.owner[c] == 0), ("nothing like it", lambda c, b: False)],
)  # fmt: skip
def test_search_finds_numbers_ranges_usage_and_classes(one, folder, text, fits):
    one.type("input[type=search]", text)
    assert sorted(codes_shown(one)) == [c for c in range(9) if fits(c, folder[1][0])]


def test_filters_and_orders_agree_with_the_counts(one, folder):
    counts = folder[1][0].counts.tolist()
    one.choose(".codes select", "unused")
    assert codes_shown(one) == [8]
    one.choose(".codes select", "used")
    one.choose(".codes label:nth-of-type(2) select", "most")
    assert codes_shown(one) == sorted(range(8), key=lambda c: (-counts[c], c))


def test_a_click_on_a_code_shows_its_patches_places_and_neighbours(one, folder):
    first = folder[1][0]
    one.click(".codes .tile[data-item='5']")
    assert one.texts(".code h2") == ["Code 5"]
    assert one.run("return location.hash") == "#5"
    tokens = int(first.counts[5])
    assert one.texts(".code p")[0].startswith(f"{tokens} token")
    assert one.run("return document.querySelectorAll('.patch').length") == min(tokens, 24)
    assert one.texts(".near button") == [str(c) for c in first.near[5]]
    places = one.run("return Array.from(page.books[0].places(5))")
    assert places == (first.indices == 5).sum(0).tolist()


def test_patches_lie_where_the_tokens_are(one, folder):
    first = folder[1][0]
    one.click(".codes .tile[data-item='2']")
    tokens = one.run("return page.books[0].spread(2)")
    images = [t // 16 for t in tokens]
    holders = set((first.indices == 2).any(1).nonzero().flatten().tolist())
    assert all(first.indices.flatten()[t] == 2 for t in tokens) and len(tokens) == first.counts[2]
    assert set(images[: len(holders)]) == holders  # every image once before one comes twice


def test_pointing_at_a_cell_lights_the_same_code_up_in_every_other_image(one, folder):
    first = folder[1][0]
    one.hover(".photo[data-item='3']", across=0.6, down=0.9)  # row 3, column 2
    code = int(first.indices[3, 14])
    lit = one.run("return [...document.querySelectorAll('.photo')].map(n => +n.dataset.lit)")
    assert lit == (first.indices == code).sum(1).tolist()
    assert f"picture 3 (dog), row 4, column 3: code {code}" in one.texts(".say")[0]
    assert one.run("return document.querySelectorAll('.lens canvas').length") == 2


def test_a_click_on_a_cell_opens_its_code(one, folder):
    one.click(".photo[data-item='1']", across=0.1, down=0.1)
    assert one.texts(".code h2") == [f"Code {int(folder[1][0].indices[1, 0])}"]


def test_the_keyboard_alone_finds_and_opens_codes_and_cells(one, folder):
    one.press("/", "4", "TAB", "TAB", "TAB", "ENTER")
    assert one.texts(".code h2") == ["Code 4"]
    one.run("document.querySelector(\".photo[data-item='2']\").focus()")
    one.press("RIGHT", "ENTER", "UP", "UP", "UP", "LEFT", "LEFT", "LEFT", "ENTER")
    assert one.texts(".code h2") == [f"Code {int(folder[1][0].indices[3, 0])}"]
    one.press("ESCAPE", "LEFT")
    assert one.run("return document.activeElement.dataset.item") == "2"


FOCUSED = "const n = document.activeElement; return [n.tagName, n.dataset.stays || '', n.textContent]"


def test_the_focus_is_not_lost_where_what_is_known_of_a_code_is_drawn_anew(one, folder):
    first = folder[1][0]
    code = int(first.counts.argmax())
    assert first.counts[code] > 24  # more than are shown at first
    one.click(f".codes .tile[data-item='{code}']")
    one.choose(".code select", "5")
    one.run("document.querySelector('.code select').focus()")
    one.press("DOWN")
    assert one.run("return document.querySelector('.code select').value") == "all"
    assert one.run(FOCUSED)[:2] == ["SELECT", "around"]
    one.run("document.querySelector('.strip + button').focus()")
    one.press("ENTER")
    place = "return [...document.querySelectorAll('.patch')].indexOf(document.activeElement)"
    assert one.run(place) == 24
    one.run("document.querySelector('.near button').focus()")
    one.press("ENTER")
    assert one.run(FOCUSED) == ["H2", "", f"Code {first.near[code][0]}"]


def test_what_a_code_s_section_showed_stays_in_view_when_more_is_shown(one, folder):
    one.click(f".codes .tile[data-item='{int(folder[1][0].counts.argmax())}']")
    one.run("const n = document.querySelector('.code'); n.style.maxHeight = '200px'; n.scrollTop = 150")
    one.run("const n = document.querySelector('.code select'); n.value = '5'; n.dispatchEvent(new Event('change'))")
    assert one.run("return document.querySelector('.code').scrollTop") == 150
    one.run("document.querySelector('.near button').click()")
    assert one.run("return document.querySelector('.code').scrollTop") == 0


def test_an_address_names_the_code(browser, folder):  # noqa: F811
    browser.open(folder[0] / "two" / "index.html", "#7,3")
    assert browser.texts(".code h2") == ["A: Code 7", "B: Code 3"]


def test_two_tokenizers_stand_side_by_side_and_light_up_together(browser, folder):  # noqa: F811
    first, second = folder[1]
    browser.open(folder[0] / "two" / "index.html")
    left, right = (browser.box(f".pane.{which} .codes") for which in ("first", "second"))
    assert left["right"] <= right["left"] and left["top"] == right["top"]
    browser.hover(".photo[data-item='5']", across=0.9, down=0.1)  # the corner: cell 3 of 4 x 4, cell 1 of 2 x 2
    lit = browser.run("return [...document.querySelectorAll('.photo')].map(n => +n.dataset.lit)")
    holds = [(b.indices == b.indices[5, cell]).sum(1) for b, cell in ((first, 3), (second, 1))]
    assert lit == (holds[0] + holds[1]).tolist()
    said = browser.texts(".say")[0]
    assert f"A: code {int(first.indices[5, 3])}" in said and f"B: code {int(second.indices[5, 1])}" in said
    assert browser.run("return document.querySelectorAll('.lens canvas').length") == 3


@pytest.mark.parametrize("name", ["one", "two"])
def test_nothing_sticks_out_of_a_small_screen_and_a_tap_lights_up(browser, folder, name):  # noqa: F811
    browser.open(folder[0] / name / "index.html", width=360, height=640)
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    browser.tap(".photo[data-item='4']", across=0.1, down=0.1)
    assert f"A: code {int(folder[1][0].indices[4, 0])}"[0 if name == "two" else 3 :] in browser.texts(".say")[0]


def test_numbers_are_packed_in_the_smallest_type_that_holds_them():
    kinds = {(0, 255): "u1", (0, 256): "u2", (0, 65536): "u4", (-1, 4): "i4"}
    for values, kind in kinds.items():
        assert pages.pack(np.array(values))["type"] == kind
    assert pages.pack(np.array([0.5], np.float32))["type"] == "f4"


@pytest.mark.parametrize(("most", "edge", "side"), [(16_383, 2, 8), (20, 1, 6), (14, 0, 4), (7, 0, 2)])
def test_a_sheet_of_codes_is_never_wider_than_a_webp_may_be(folder, tmp_path, monkeypatch, most, edge, side):
    first = folder[1][0]  # 9 codes, three in a row, of 4 pixels each
    monkeypatch.setattr(pages, "WEBP_PX", most)
    found = pages._code_sheet(tmp_path, "codes.webp", first, 2)
    assert (found["edge"], found["high"], found["wide"]) == (edge, side, side)
    with Image.open(tmp_path / "codes.webp") as picture:
        assert picture.size == (3 * side, 3 * side)


def test_sixteen_thousand_codes_keep_few_tiles_in_the_page(browser, tmp_path):  # noqa: F811
    k, images = 16_384, torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    indices = torch.arange(64 * 256).view(64, 256)
    xy = np.random.default_rng(0).random((k, 2)).astype(np.float32)
    typical = np.stack(np.divmod(np.arange(k), 256), 1)
    near = np.roll(np.arange(k), -1)[:, None]
    many = Codebook("many", images, indices, (16, 16), torch.ones(k), xy, xy, typical, near, None)
    files = write_page(
        tmp_path,
        [many],
        torch.full((64,), -1),
        [str(i) for i in range(64)],
        [],
        perplexities=[k],
        context=0,
        title="many",
    )
    assert json.loads((tmp_path / "page/data.js").read_text()[len("window.TOK = ") : -2])["books"][0]["size"] == k
    assert all((tmp_path / name).is_file() for name in files)
    browser.open(tmp_path / "index.html", "#16000")
    assert browser.texts(".code h2") == ["Code 16000"] and browser.errors() == []
    assert 0 < browser.run("return document.querySelectorAll('.codes .tile').length") < 1000


def test_what_is_lit_is_the_code_picked_wherever_the_pointer_was(one, folder):
    first = folder[1][0]
    code = int(first.counts.argmax())
    one.click(f".codes .tile[data-item='{code}']")
    one.run("document.querySelector('.patch').focus()")
    assert one.run("return page.lit") == [code]
    one.run("document.querySelector('.near button').focus()")
    one.press("ENTER")
    near = int(first.near[code][0])
    assert one.run("return [page.picked.code, ...page.lit]") == [near, near]
    one.hover(".photo[data-item='1']", across=0.1, down=0.1)
    cell = one.run("return page.pointed.cells[0]")
    one.click(".photo[data-item='1']", across=0.1, down=0.1)
    assert one.run("return [page.pointed.image, page.pointed.cells[0]]") == [
        1,
        cell,
    ]  # what was clicked stays pointed at


def test_on_a_small_screen_the_heading_of_a_neighbour_picked_comes_into_view(browser, folder):  # noqa: F811
    browser.open(folder[0] / "one" / "index.html", width=480, height=700)
    browser.click(".codes .tile[data-item='2']")
    browser.run("document.querySelector('.near button').focus()")
    browser.press("ENTER")
    box = browser.box(".code h2")
    assert box["top"] >= 0 and box["bottom"] <= 700


def test_the_code_picked_is_outlined_in_the_atlas_from_the_start_and_after_scrolling(one):
    outlined = "return [...document.querySelectorAll('.codes .tile')].filter(n => getComputedStyle(n).outlineStyle === 'solid').map(n => +n.dataset.item)"
    assert one.run(outlined) == [one.run("return page.picked === null ? page.panes[0].picked : page.picked.code")]
    one.click(".codes .tile[data-item='3']")
    one.choose(".codes label:nth-of-type(2) select", "index")  # all tiles are made anew
    one.hover("h1")
    assert one.run(
        "return [...document.querySelectorAll('.codes [aria-selected=true]')].map(n => +n.dataset.item)"
    ) == [3]
    assert 3 in one.run(outlined)
