"""CLIP scores of samples and their captions, by towers with random weights."""

import pytest
import torch
from PIL import Image

from tokcli.artifact.opening import Artifact
from tokcli.errors import TokError
from tokcli.evaluation.captions import Captions
from tokcli.metrics.clip_score import clip_score


class Colours:
    """Two towers that see and read one colour of three."""

    class images:
        sha256 = "abc"

        @staticmethod
        def pooled(pixels):
            return pixels.mean((2, 3))

    class texts:
        @staticmethod
        def embed(captions):
            return torch.stack([torch.eye(3)[("red", "green", "blue").index(c)] for c in captions])

    device = torch.device("cpu")


def samples(folder, colours, prompts):
    (folder / "images").mkdir(parents=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{number:06d}.png")
    return Artifact(
        folder,
        {"kind": "samples", "id": "s", "facts": {"number": len(colours)}, "recipe": {"sample": {"prompts": prompts}}},
    )


def test_each_image_is_compared_with_the_caption_it_was_drawn_for(tmp_path):
    made = samples(tmp_path / "a", ["red", "blue", "red", "red"], ["red", "blue"])  # captions come in turn
    (found,) = Captions.__call__(Colours(), made, ("teacher",))
    assert found.value == pytest.approx(75) and found.count == 4
    assert (found.name, found.what.extractor, found.involved) == ("clip_score", "clip", ("teacher",))


def test_samples_of_classes_have_no_clip_score(tmp_path):
    assert Captions.__call__(Colours(), samples(tmp_path / "a", ["red"], None), ()) == []


def test_a_clip_score_is_never_negative_and_scale_does_not_matter():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert clip_score(x, torch.tensor([[5.0, 0.0], [0.0, -1.0]])).tolist() == [100.0, 0.0]


@pytest.mark.parametrize("captions", [torch.zeros(2, 3), torch.full((2, 2), torch.nan)])
def test_embeddings_that_cannot_be_compared_are_refused(captions):
    with pytest.raises((TokError, ValueError), match="clip score"):
        clip_score(torch.ones(2, 2), captions)


@pytest.mark.slow
def test_whole_captions_are_embedded_as_open_clip_does():
    import open_clip

    from tokcli.pretrained.text import build_text_tower

    tower, theirs = (
        build_text_tower("clip", "random"),
        open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).eval(),
    )
    tower.body.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in tower.body.state_dict()})
    captions = ["red heart", "flag: France", "a grinning face with sweat"]
    with torch.no_grad():
        expected = theirs.encode_text(open_clip.get_tokenizer("ViT-B-16-quickgelu")(captions))
    torch.testing.assert_close(tower.embed(captions), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_judge_scores_pictures_and_captions_as_open_clip_does(tmp_path):
    import open_clip

    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).eval()
    pictures = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)  # of the network's own size: no resizing
    captions = ["red heart", "a grinning face with sweat"]
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        seen = theirs.encode_image((pictures / 255 - mean) / std)
        wanted = theirs.encode_text(open_clip.get_tokenizer("ViT-B-16-quickgelu")(captions))[[0, 1, 0]]
        cosines = torch.cosine_similarity(seen, wanted)
        sign = (
            cosines.sum().sign()
        )  # random towers see all alike: turned round where that is opposite, which would score 0
        theirs.text_projection.mul_(sign)
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    (tmp_path / "a" / "images").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "a" / "images" / f"{number:06d}.png")
    manifest = {"kind": "samples", "id": "s", "facts": {"number": 3}, "recipe": {"sample": {"prompts": captions}}}
    (found,) = Captions(tmp_path / "clip.pt", torch.device("cpu"))(Artifact(tmp_path / "a", manifest), ())
    expected = 100 * (sign * cosines).clamp(min=0).mean()
    assert found.value == pytest.approx(float(expected), abs=1e-3) and expected > 0.1
