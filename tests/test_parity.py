"""The same images through pytorch-fid's own command, torch-fidelity's formulas and ours, with one file of stand-in weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from tokcli.artifact.opening import Artifact
from tokcli.command.options import Options
from tokcli.evaluation.generated import judge_samples
from tokcli.evaluation.references import References
from tokcli.measure.extractors import load_extractors
from tokcli.metrics import frechet_distance
from tokcli.metrics.fid import Moments
from tokcli.pretrained import build_network

IMAGES, CPU = 24, torch.device("cpu")


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


@pytest.mark.slow
def test_every_metric_of_inception_is_that_of_its_network_s_own_features(tmp_path, weights, folders):
    isc = pytest.importorskip("torch_fidelity.metric_isc").isc_features_to_metric
    kid = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    ours, real = folders
    ours.rename(tmp_path / "images")
    a = Artifact(tmp_path, {"kind": "samples", "id": "s", "facts": {"number": IMAGES}})
    for file in sorted((tmp_path / "images").iterdir()):
        file.rename(file.with_name(f"{int(file.stem):06d}.png"))
    (judge,) = load_extractors(["inception"], weights, CPU)
    references = References(Options(workspace=tmp_path / "ws"), [str(real)], 100, CPU)
    found = judge_samples(a, [judge], lambda e: references.of(e, 32), lambda e: (), CPU, manifold=100, bootstrap=2)
    values = {m.what.metric: m.value for m in found}
    assert set(values) == {"inception_score", "fd", "sfd", "kd", "precision", "recall", "density", "coverage"}
    read = lambda folder: torch.stack([torch.from_numpy(np.array(Image.open(f))) for f in sorted(folder.iterdir())])  # noqa: E731
    fake, true = (judge.network.judged(read(f).permute(0, 3, 1, 2) / 255) for f in (tmp_path / "images", real))
    assert values["inception_score"] == pytest.approx(isc(fake[2])["inception_score_mean"], rel=1e-4)
    expected = kid(fake[0], true[0], kid_subsets=1, kid_subset_size=IMAGES, verbose=False)
    assert values["kd"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    spatial = [Moments(), Moments()]
    for moments, features in zip(spatial, (fake[1], true[1]), strict=True):
        moments.update(features)
    assert values["sfd"] == pytest.approx(frechet_distance(*spatial), rel=1e-4)
