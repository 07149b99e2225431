"""The same images through pytorch-fid's own command and through ours, with one file of stand-in weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from tokcli.evaluation.extractors import load_extractors
from tokcli.evaluation.references import References
from tokcli.metrics import frechet_distance
from tokcli.networks import build_network
from tokcli.workspace import Options

IMAGES = 24


@pytest.fixture
def weights(tmp_path):
    """Random Inception weights in the file layout that pytorch-fid fetches, with activations that do not die out."""
    body = build_network("inception", "random").body
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(
                    module.weight, generator=torch.Generator().manual_seed(module.weight.numel())
                )
    torch.save(body.state_dict(), tmp_path / "stand-in.pth")
    return tmp_path / "stand-in.pth"


@pytest.fixture
def folders(tmp_path):
    """Two folders of 32 px pictures: noise at two scales, the second warmer and smoother."""
    for name, side in (("a", 32), ("b", 8)):
        (tmp_path / name).mkdir()
        draw = np.random.RandomState(side)
        for number in range(IMAGES):
            noise = draw.randint(0, 200 + side, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((32, 32), Image.Resampling.BILINEAR).save(
                tmp_path / name / f"{number:02d}.png"
            )
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.slow
def test_our_distance_is_that_of_pytorch_fid_s_command(tmp_path, weights, folders, monkeypatch, capsys):
    from pytorch_fid import fid_score as score
    from pytorch_fid import inception
    from scipy.linalg import sqrtm

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, weights_only=True))
    # it passes `disp`, which SciPy 1.18 drops, and takes a pair
    monkeypatch.setattr(score.linalg, "sqrtm", lambda matrix, disp=True: sqrtm(matrix) if disp else (sqrtm(matrix), 0))
    monkeypatch.setattr("sys.argv", ["pytorch_fid", *map(str, folders), "--device", "cpu", "--num-workers", "0"])
    score.main()
    theirs = float(capsys.readouterr().out.split("FID:")[1])
    (judge,) = load_extractors(["inception"], weights, torch.device("cpu"))
    made = References(Options(workspace=tmp_path / "ws"), list(map(str, folders)), 0, torch.device("cpu")).of(judge, 32)
    assert frechet_distance(made[0].gaussian, made[1].gaussian) == pytest.approx(theirs, rel=1e-4)
