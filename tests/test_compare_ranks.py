"""One process against several ranks: what differs, what a rank takes, and the tables of what is kept."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import compare_ranks  # noqa: E402

from tokcli.artifact.weights import save_tensors  # noqa: E402


def weights(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_tensors(folder / "model.safetensors", {name.replace("__", "."): t for name, t in tensors.items()})
    return folder


def test_a_code_that_got_another_vector_is_told_from_the_network(tmp_path: Path) -> None:
    codebook, head = torch.zeros(4, 2), torch.ones(3)
    alone = weights(tmp_path / "alone", quantizer__codebook=codebook, head=head)
    codebook[1, 0], codebook[2, 1], codebook[3, 0] = 2e-3, -1e-3, 1e-5
    ranks = weights(tmp_path / "ranks", quantizer__codebook=codebook, head=head + 2e-6)
    found = compare_ranks.differences(ranks, alone)
    assert found == pytest.approx({"network": 2e-6, "codebook": 2e-3, "codes": 2}, rel=0.1)
    assert compare_ranks.shown_differences(found) == "2e-06; 2e-03 (2 codes)"
    assert compare_ranks.differences(alone, alone) == {"network": 0, "codebook": 0, "codes": 0}


def test_a_tokenizer_without_a_codebook_has_a_network_alone(tmp_path: Path) -> None:
    one, other = (weights(tmp_path / f"{i}", head=torch.full((3,), float(i))) for i in range(2))
    assert compare_ranks.differences(one, other) == {"network": 1.0}


def test_the_peak_of_a_process_is_that_of_its_memory() -> None:
    line = "import sys; held = bytearray(200 << 20); held[::4096] = b'x' * len(held[::4096]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout and run.stdout.readline()
        (peak,) = dict(compare_ranks.peak_memory(run.pid)).items()
        assert run.stdin
        run.stdin.close()
    assert peak[0] == run.pid and 200 <= peak[1] / 2**20 < 260
    assert not list(compare_ranks.peak_memory(run.pid))  # it has ended


def test_the_page_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = compare_ranks.read()
    assert list(kept) == [*compare_ranks.TRAININGS, "memory"]
    assert [(row["ranks"], row["parallel"], len(row["peak"])) for row in kept["memory"]] == [
        (ranks, parallel, ranks) for ranks, parallel in compare_ranks.MEASURED
    ]
    assert compare_ranks.page(kept) in compare_ranks.PAGE.read_text(encoding="utf-8")


def test_what_all_ranks_keep_alike_is_told_once() -> None:
    line = "parameters 1.5, 1.5; optimizer 3.0, 3.1; averages 0.0, 0.0"
    assert compare_ranks.same_of_all(line) == "parameters 1.5; optimizer 3.0, 3.1; averages 0.0"
