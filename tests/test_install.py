"""An installed tok holds what a checkout holds: every package, every recipe, the pages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def below(folder: Path, *kinds: str) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in kinds}


@pytest.mark.slow
def test_what_is_built_holds_all_modules_recipes_and_pages(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed (extra dev)")
    steps = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    ran = subprocess.run(
        [sys.executable, "setup.py", "-q", *steps], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    built = tmp_path / "lib" / "tokcli"
    kinds = (".py", ".html", ".css", ".js")
    assert below(built, *kinds) == below(ROOT / "tokcli", *kinds)
    assert below(built / "recipes", ".yaml") == below(ROOT / "recipes", ".yaml")
