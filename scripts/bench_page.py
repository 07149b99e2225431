"""How long the codebook's page takes with many codes, in a headless Chromium: opening, search, a pick, lighting up.

    python scripts/bench_page.py [--codes 16384] [--images 2000] [--side 128] [--grid 16] [--rounds 5]

The codebook is made up (random codes and images): the page's time does not depend on what is in it. Needs the extra
`dev` and Debian's chromium and chromium-driver. Times are medians of fresh loads from disk, in the page's own clock.
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from selenium import webdriver

from tokcli import pictures
from tokcli.codebook.page import write_page
from tokcli.codebook.view import see

ACTIONS = {
    "search '> 30'": "page.panes[0].text.value = '> 30'; page.panes[0].search()",
    "pick a code": "page.panes[0].pick(5)",
    "light a code up in all images": "page.point(1, 0, 40); page.wall.repaint()",
}


def make_page(folder: Path, codes: int, images: int, side: int, grid: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, 3, 8, 8, generator=generator)
    pixels = pictures.to_uint8(torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear"))
    indices = (torch.rand(images, grid * grid, generator=generator) ** 2 * codes).long().clamp(max=codes - 1)
    table, labels = torch.randn(codes, 8, generator=generator), torch.arange(images) % 10
    book = see("made up", pixels, indices, labels, (grid, grid), table, torch.rand(indices.shape))
    names, classes = [f"image {i}" for i in range(images)], [f"class {i}" for i in range(10)]
    write_page(
        folder,
        [book],
        torch.arange(images) % 10,
        names,
        classes,
        perplexities=[float(codes)],
        context=4,
        title="made up",
    )


def measure(path: Path, rounds: int) -> dict[str, list[float]]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1440,1000"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    found: dict[str, list[float]] = {"open": [], **{name: [] for name in ACTIONS}}
    try:
        for _ in range(rounds + 1):
            driver.get("about:blank")
            driver.get(f"file://{path}")
            while not (ready := driver.execute_script("return document.documentElement.dataset.ready")):
                time.sleep(0.01)
            found["open"].append(float(ready))
            for name, code in ACTIONS.items():
                timed = f"const t = performance.now(); {code}; document.body.offsetHeight; return performance.now() - t"
                found[name].append(driver.execute_script(timed))
    finally:
        driver.quit()
    return {name: values[1:] for name, values in found.items()}  # the first load warms the disk up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("codes", 16384), ("images", 2000), ("side", 128), ("grid", 16), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        make_page(Path(folder), given.codes, given.images, given.side, given.grid)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6
        print(f"{given.codes} codes, {given.images} images of {given.side} px, {given.grid} x {given.grid} tokens each")
        print(f"{platform.processor() or platform.machine()}; numpy {np.__version__}, torch {torch.__version__}")
        print(f"written in {time.perf_counter() - began:.1f} s, {size:.1f} MB")
        for name, values in measure(Path(folder) / "index.html", given.rounds).items():
            print(f"{name:<32}{statistics.median(values):8.1f} ms   ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
