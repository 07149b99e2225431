"""CLIP scores of samples and their captions, by towers with random weights."""

import pytest
import torch
from PIL import Image

from tokcli.artifact import Artifact
from tokcli.errors import TokError
from tokcli.evaluation.captions import ClipScore
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
    (found,) = ClipScore.__call__(Colours(), made, ("teacher",))
    assert found.value == pytest.approx(75) and found.count == 4
    assert (found.metric, found.extractor, found.involved) == ("clip_score", "clip", ("teacher",))


def test_samples_of_classes_have_no_clip_score(tmp_path):
    assert ClipScore.__call__(Colours(), samples(tmp_path / "a", ["red"], None), ()) == []


def test_a_clip_score_is_never_negative_and_scale_does_not_matter():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert clip_score(x, torch.tensor([[5.0, 0.0], [0.0, -1.0]])).tolist() == [100.0, 0.0]


@pytest.mark.parametrize("captions", [torch.zeros(2, 3), torch.full((2, 2), torch.nan)])
def test_embeddings_that_cannot_be_compared_are_refused(captions):
    with pytest.raises(TokError, match="clip score"):
        clip_score(torch.ones(2, 2), captions)


@pytest.mark.slow
def test_whole_captions_are_embedded_as_open_clip_does():
    import open_clip

    from tokcli.networks.text import build_text_tower

    tower, theirs = (
        build_text_tower("clip", "random"),
        open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).eval(),
    )
    tower.body.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in tower.body.state_dict()})
    captions = ["red heart", "flag: France", "a grinning face with sweat"]
    with torch.no_grad():
        expected = theirs.encode_text(open_clip.get_tokenizer("ViT-B-16-quickgelu")(captions))
    torch.testing.assert_close(tower.embed(captions), expected, rtol=1e-4, atol=1e-5)
