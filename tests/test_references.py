"""Reference statistics: made once from images of any kind or a published file, named by what they are, refused where they do not fit."""

import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tokcli.artifact.opening import open_artifact
from tokcli.command.options import Options
from tokcli.errors import TokError
from tokcli.evaluation import published
from tokcli.evaluation.published import read_images, read_npz
from tokcli.evaluation.references import References
from tokcli.measure.extractors import Extractor, Seen, chosen, load_extractors, look
from tokcli.metrics import frechet_distance

CPU = torch.device("cpu")


class Tiny:
    """A network that sees four numbers in an image, and counts how often it was asked."""

    sha256, extractor_size, resize, asked = "abc", 8, "bicubic", 0
    judged_widths = (4, 2, 3)

    def pooled(self, images):
        self.asked += 1
        return torch.stack(
            [images.mean((1, 2, 3)), images[:, 0].amax((1, 2)), images[:, 1, 0, 0], images[:, 2, -1, -1]], 1
        )


def tiny(name="tiny"):
    return Extractor(name, Tiny(), name)


@pytest.fixture
def images(tmp_path):
    """Twelve pictures of different sizes and modes in a folder."""
    folder = tmp_path / "data" / "val"
    folder.mkdir(parents=True)
    draw = np.random.RandomState(0)
    for number, mode in enumerate(["RGB", "L", "RGBA", "P"] * 3):
        size = (8 + number, 20 - number)
        picture = Image.fromarray(draw.randint(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        picture.convert(mode).save(folder / f"{number:02d}.png")
    return folder


def references(tmp_path, *specs, manifold=100):
    return References(Options(workspace=tmp_path / "ws"), [str(s) for s in specs], manifold, CPU)


def test_statistics_are_made_once_and_say_what_they_are(tmp_path, images):
    judge = tiny()
    (first,) = references(tmp_path, images).of(judge, 8)
    asked = judge.network.asked
    (again,) = references(tmp_path, images).of(judge, 8)
    assert judge.network.asked == asked > 0
    assert first.artifact == again.artifact and np.array_equal(first.gaussian.covariance, again.gaussian.covariance)
    (folder,) = (tmp_path / "ws").iterdir()
    assert folder.name.startswith("statistics-data-val-tiny-")
    facts = open_artifact(folder).facts
    known = {k: facts[k] for k in ("images", "size", "extractor", "extractor_sha256", "dim", "features")}
    assert known == {"images": 12, "size": 8, "extractor": "tiny", "extractor_sha256": "abc", "dim": 4, "features": 12}
    assert facts["resize"] == "short side bicubic, centre crop"


def test_statistics_that_another_process_makes_are_waited_for(tmp_path, images):
    class Slow(Tiny):
        def pooled(self, pixels):
            begun.set()
            assert not waiting or waiting[0].is_alive()  # it is still there, and made nothing itself
            time.sleep(0.3)
            return super().pooled(pixels)

    begun, waiting, found = threading.Event(), [], []
    judge = Extractor("tiny", Slow(), "tiny")
    second = threading.Thread(target=lambda: begun.wait() and found.extend(references(tmp_path, images).of(tiny(), 8)))
    second.start()
    waiting.append(second)
    (first,) = references(tmp_path, images).of(judge, 8)
    second.join(timeout=60)
    assert [one.artifact for one in found] == [first.artifact] and len(list((tmp_path / "ws").iterdir())) == 1


@pytest.mark.parametrize("change", [{"size": 16}, {"extractor": "other"}, {"manifold": 3}])
def test_other_size_extractor_or_manifold_are_other_statistics(tmp_path, images, change):
    one, other = {"size": 8, "extractor": "tiny", "manifold": 100}, change
    found = []
    for keys in (one, one | other):
        (reference,) = references(tmp_path, images, manifold=keys["manifold"]).of(tiny(keys["extractor"]), keys["size"])
        found.append(reference)
    assert found[0].artifact != found[1].artifact
    assert len(found[1].features) == (3 if "manifold" in change else 12)


def test_statistics_can_be_named_as_a_reference_for_their_own_extractor_only(tmp_path, images):
    references(tmp_path, images).of(tiny(), 8)
    (folder,) = (tmp_path / "ws").iterdir()
    named = references(tmp_path, folder)
    assert len(named.of(tiny(), 8)) == 1 and named.of(tiny("other"), 8) == []
    assert named.inputs(8)[0]["id"].startswith("statistics-")
    with pytest.raises(TokError, match="its size must be 16. Got 8"):
        references(tmp_path, folder).of(tiny(), 16)
    (changed := tiny()).network.sha256 = "def"
    with pytest.raises(TokError, match="its extractor sha256 must be def. Got abc"):
        references(tmp_path, folder).of(changed, 8)


def test_statistics_of_dinov2_at_another_size_are_made_anew_and_refused_where_named(tmp_path, images):
    (at_518 := tiny("dinov2-b")).network.extractor_size = 518
    (first,), (second,) = (references(tmp_path, images).of(e, 8) for e in (at_518, tiny("dinov2-b")))
    assert first.artifact != second.artifact
    (folder,) = (f for f in (tmp_path / "ws").iterdir() if open_artifact(f).id == first.artifact)
    with pytest.raises(TokError, match="its extractor size must be 8. Got 518"):
        references(tmp_path, folder).of(tiny("dinov2-b"), 8)


@pytest.mark.parametrize(
    ("name", "asked"), [("tiny", "tiny"), ("dinov2-b", "dinov2-b"), ("inception-1234abcd", "inception")]
)
def test_statistics_of_no_extractor_here_say_how_it_is_asked_for(tmp_path, images, name, asked):
    references(tmp_path, images).of(tiny(name), 8)
    (folder,) = (tmp_path / "ws").iterdir()
    with pytest.raises(TokError, match=rf"is of {name},.*'eval.extractors=\[{asked}\]'"):
        references(tmp_path, folder).check([tiny("other")], {(8, None)})


def test_a_reference_that_no_extractor_reads_is_refused_at_once(tmp_path, images):
    references(tmp_path, images).of(tiny(), 8)
    (folder,) = (tmp_path / "ws").iterdir()
    references(tmp_path, folder, images).check([tiny(), tiny("other")], {(8, None)})
    with pytest.raises(TokError, match=r"is of tiny, which is no extractor of this recipe. Got eval.extractors: other"):
        references(tmp_path, images, folder).check([tiny("other")], ())
    with pytest.raises(TokError, match="its size must be 16. Got 8"):
        references(tmp_path, images, folder).check([tiny("other"), tiny()], {(8, None), (16, None)})
    with pytest.raises(
        TokError, match="its resize must be long side bicubic, on white. Got short side bicubic, centre crop"
    ):
        references(tmp_path, folder).check([tiny()], {(8, "white")})
    whole = (folder / "features.safetensors").read_bytes()
    (folder / "features.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TokError, match="features.safetensors"):
        references(tmp_path, folder).check([tiny()], {(8, None)})
    (folder / "features.safetensors").write_bytes(whole)
    with pytest.raises(TokError, match=r"x.npz: holds features of Inception, which is no extractor"):
        references(tmp_path, tmp_path / "x.npz").check([tiny()], ())
    (tmp_path / "x.npz").write_text("no zip")
    with pytest.raises(TokError, match=r"x.npz: is not a whole .npz file"):
        references(tmp_path, tmp_path / "x.npz").check([tiny("inception")], ())


def test_a_reference_that_is_not_there_is_named_by_its_flag_and_one_of_two_spellings_is_read(
    tmp_path, images, monkeypatch
):
    with pytest.raises(TokError, match=r"^--reference .*/gone: no such folder"):
        references(tmp_path, tmp_path / "gone").of(tiny(), 8)
    monkeypatch.chdir(images.parent)
    assert len(references(tmp_path, "val", "./val", images).of(tiny(), 8)) == 1


def test_a_report_is_no_reference(tmp_path, make_artifact):
    made = make_artifact(tmp_path / "report", kind="report")
    with pytest.raises(TokError, match="is not of kind statistics. Got report"):
        references(tmp_path, made.path)


def test_two_references_come_in_the_order_named(tmp_path, images):
    shutil.copytree(images, images.parent / "train")
    (images.parent / "train" / "00.png").unlink()
    found = references(tmp_path, images.parent / "train", images).of(tiny(), 8)
    assert [one.against.images for one in found] == [11, 12]


def test_one_corrupt_file_is_left_out_and_named(tmp_path, images, caplog):
    (images / "05.png").write_bytes(b"\x89PNG broken")
    (found,) = references(tmp_path, images).of(tiny(), 8)
    assert found.against.images == 11 and "05.png: left out" in caplog.text


def test_alpha_is_put_on_white_and_grey_becomes_rgb(tmp_path):
    for name, mode, colour in (("a", "RGBA", (0, 0, 0, 0)), ("b", "L", 255), ("c", "RGB", (255,) * 3)):
        (folder := tmp_path / name).mkdir()
        for number in range(2):
            Image.new(mode, (8 + number, 9), colour).save(folder / f"{number}.png")
    means = [references(tmp_path, tmp_path / n).of(tiny(), 8)[0].gaussian.mean for n in "abc"]
    assert np.allclose(means, 1)


def test_ten_images_have_a_distance(tmp_path, images):
    for name in ("10.png", "11.png"):
        (images / name).unlink()
    (found,) = references(tmp_path, images).of(tiny(), 8)
    assert frechet_distance(found.gaussian, found.gaussian) < 1e-6


def test_one_image_has_no_statistics_and_leaves_no_artifact(tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "one" / "1.png")
    with pytest.raises(TokError, match="a covariance needs at least 2 images"):
        references(tmp_path, tmp_path / "one").of(tiny(), 8)
    assert not list((tmp_path / "ws").glob("*/statistics.safetensors"))


def test_features_that_are_not_finite_are_one_clear_line(tmp_path, images):
    judge = tiny()
    judge.network.pooled = lambda x: x.mean((2, 3)) * float("nan")
    with pytest.raises(TokError, match=r"--reference .*val: features are not finite. Got 8 of the 8 images"):
        references(tmp_path, images).of(judge, 8)


@pytest.mark.parametrize("arrive", [1, 5, 64])
def test_what_an_extractor_saw_does_not_depend_on_batches(arrive):
    x = torch.randint(0, 256, (70, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen, at_once = (look(b, Seen(tiny(), "x", range(0, 70, 3)), CPU) for b in (x.split(arrive), [x]))
    whole = Tiny().pooled(x.float() / 255)
    assert torch.equal(seen.features, at_once.features) and torch.allclose(seen.features, whole[::3])
    assert np.allclose(seen.moments.gaussian().covariance, np.cov(whole.double().numpy(), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize(("count", "most", "length"), [(10, 4, 4), (12, 4, 4), (3, 4, 3), (10, 0, 0), (9, 1, 1)])
def test_some_numbers_are_chosen_of_all(count, most, length):
    found = list(chosen(count, most))
    assert len(found) == length and found == sorted(set(found)) == list(chosen(count, most))
    assert all(0 <= i < count for i in found)


@pytest.mark.parametrize("classes", [10, 100])
def test_images_whose_classes_come_in_turn_are_chosen_of_every_class(classes):
    found = np.bincount([i % classes for i in chosen(50_000, 10_000)], minlength=classes)
    assert found.min() > 0.6 * 10_000 / classes


# published files


@pytest.fixture
def small_inception(monkeypatch):
    """Published statistics of 4 pooled and 2 spatial features, of a judge that goes by inception's name."""
    monkeypatch.setattr(published, "POOLED", 4)
    monkeypatch.setattr(published, "SPATIAL", 2)
    return tiny("inception")


def npz(path, d=4, **more):
    x = np.random.RandomState(1).randn(50, d)
    np.savez(path, mu=x.mean(0), sigma=np.cov(x, rowvar=False), **more)
    return path


def test_pytorch_fid_s_file_is_a_reference_for_inception_only(tmp_path, small_inception):
    path = npz(tmp_path / "ref.npz")
    found = references(tmp_path, path)
    (one,) = found.of(small_inception, 64)
    assert one.against.images is None and one.features is None and one.spatial is None
    assert one.gaussian.mean.shape == (4,) and found.of(tiny("vits14"), 64) == []
    assert one.artifact == references(tmp_path, path).of(small_inception, 32)[0].artifact  # its images' size is its own


def test_adm_s_file_gives_spatial_statistics_and_its_images_features(tmp_path, small_inception):
    pictures = np.random.RandomState(2).randint(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    path = npz(tmp_path / "adm.npz", mu_s=np.zeros(2), sigma_s=np.eye(2), arr_0=pictures)
    (one,) = references(tmp_path, path).of(small_inception, 8)
    assert one.against.images is None  # the statistics are of more images than stand beside them
    assert one.spatial.mean.shape == (2,)
    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat(list(read_images(path))), whole)
    assert torch.allclose(one.features, Tiny().pooled(whole.float() / 255))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: npz(p, d=5), "is not of Inception's 2,048 features. Got mean (5,)"),
        (lambda p: np.savez(p, mu=np.zeros(2048)), "holds no statistics: mu and sigma. Got mu"),
        (lambda p: np.savez(p, x=np.zeros(3)), "holds no statistics: mu and sigma. Got neither"),
        (lambda p: p.write_bytes(b"PK\x03\x04 cut"), "is not a whole .npz file"),
        (lambda p: np.savez(p, mu=np.array([{}], dtype=object)), "is not a whole .npz file"),
        (lambda p: np.savez(p, mu=np.full(2048, np.nan), sigma=np.zeros((2048, 2048))), "not finite"),
        (lambda p: np.savez(p, arr_0=np.zeros((3, 4))), "is not a whole .npz file: arr_0 is not uint8 images"),
    ],
)
def test_files_that_hold_no_such_statistics_are_one_clear_line(tmp_path, make, said):
    make(tmp_path / "x.npz")
    with pytest.raises(TokError) as caught:
        read_npz(tmp_path / "x.npz", "--reference x.npz")
    assert str(caught.value).startswith("--reference x.npz: ") and said in str(caught.value)


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path, small_inception):
    with pytest.raises(TokError, match=r"--reference .*none.npz: no such file"):
        references(tmp_path, tmp_path / "none.npz").of(small_inception, 8)


# inception's name


def test_another_file_than_the_published_one_never_gives_an_fid(tmp_path, caplog):
    from tokcli.artifact.weights import save_tensors
    from tokcli.pretrained import build_network

    save_tensors(tmp_path / "w.safetensors", build_network("inception", "random").body.state_dict())
    (judge,) = load_extractors(["inception", "inception"], tmp_path / "w.safetensors", CPU)
    assert judge.name == f"inception-{judge.network.sha256[:8]}" and judge.asked == "inception"
    assert "its distance is called fd_inception-" in caplog.text
    pooled, spatial, logits = judge.split(judge(torch.rand(1, 3, 299, 299)))
    assert (pooled.shape[1], spatial.shape[1], logits.shape[1]) == (2048, 2023, 1008)


def test_weights_for_inception_without_inception_are_refused(tmp_path):
    with pytest.raises(TokError, match="no extractor of this recipe is inception"):
        load_extractors(["efflite0"], tmp_path / "w.pth", CPU)
