"""Fashion-MNIST's networks before and now: the table is that of the kept numbers."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import equal_minutes  # noqa: E402


def measured(seed: int, training: str, fd: float) -> dict[str, Any]:
    """A seed's numbers, alike in both modes."""
    found = {f"{name}_{mode}": [fd] for name in equal_minutes.SHOWN for mode in equal_minutes.MODES}
    trained = {mode: {"steps": 1200, "seconds": 240} for mode in equal_minutes.MODES}
    return {"seed": seed, "training": training, "numbers": found, "trained": trained}


def test_intervals_are_of_all_rows_seeds() -> None:
    kept = {f"{s} {t}": measured(s, t, fd) for s, t, fd in [(0, "before", 90.0), (1, "before", 94.0), (0, "now", 80.0)]}
    rows = equal_minutes.page(kept).splitlines()
    assert rows[2].startswith("| AR, before | 2 | 1,200 | 92.0 ± ")
    # 2.83, the deviation of both rows of two seeds, times Student's 4.303 of two degrees of freedom
    assert rows[3].startswith("| AR, now | 1 | 1,200 | 80.0 ± 12.2 |")


def test_the_page_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "page.md"
    copy.write_bytes(equal_minutes.PAGE.read_bytes())
    monkeypatch.setattr(equal_minutes, "PAGE", copy)
    equal_minutes.main()
    assert copy.read_bytes() == (equal_minutes.ROOT / "docs/results/fashion-mnist.md").read_bytes()


def test_each_training_is_run_once_a_seed_by_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(equal_minutes, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(equal_minutes, "PAGE", tmp_path / "page.md")
    equal_minutes.PAGE.write_text(f"<!-- {equal_minutes.BLOCK} --><!-- end of {equal_minutes.BLOCK} -->")
    monkeypatch.setattr(equal_minutes, "run", lambda t, s: (asked.append((t, s)), measured(s, t, 90.0 + s))[1])
    for _ in range(2):
        equal_minutes.main("0", "3")
    assert asked == [("before", 0), ("now", 0), ("before", 3), ("now", 3)]
    assert "| NAR, now | 2 | 1,200 | 91.5 ± " in equal_minutes.PAGE.read_text()
