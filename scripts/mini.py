"""What `scripts/benchmark.sh --mini` runs on: sizes, made images, and random weights of the true architectures.

    python scripts/mini.py sets RECIPE [KEY=VALUE ...]  the overrides of a recipe, one KEY=VALUE a line
    python scripts/mini.py imagenet DIR                 train and val with folders of synsets, 4 and 2 images in each of 4
    python scripts/mini.py coco DIR [YEAR]              COCO's layout with five captions an image, 16 and 10 images
    python scripts/mini.py weights DIR NAME...          DIR/NAME.safetensors of clip, vit, dino, mae, vgg16, inception, ...

`sets` changes sizes alone: widths, depths, images (and classes), steps (of training, warm-up, the discriminator's start, sampling),
pixels, a smaller network of the second judge's kind, and what a machine has (loader processes; bfloat16, in which a CPU without
AVX-512 takes ten times as long). Codebooks, widths of codes, losses and their weights, optimizers and samplers stay those of the recipe.
"""

import json
import math
import os
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

GRID = 4  # rows and columns of tokens
SMALLEST = 32  # pixels that perceptual losses and discriminators need
STEPS, BATCH = 2, 4
SYNSETS = ("n01440764", "n02099601", "n03445777", "n07753592")
COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200), "yellow": (220, 200, 40)}
SHAPES = ("disc", "square", "cross")
GPT2 = {"width": 64, "depth": 2}  # of the language weights, and of networks that start from them
SMALL = {"dinov2-b": "dinov2-s"}  # the same judge at a smaller width

# Key -> value where the recipe has the key; a function is given the recipe and the key's own value.
SIZES: dict[str, Any] = {
    "data.workers": 0,
    "encoder.widths": lambda recipe, value: [32] * len(value),
    "encoder.width": 64,
    "encoder.depth": 1,
    "encoder.heads": 2,
    "encoder.blocks": 1,
    "encoder.channels": 32,
    "decoder.widths": lambda recipe, value: [32] * len(value),
    "decoder.width": 64,
    "decoder.depth": 1,
    "decoder.heads": 2,
    "decoder.blocks": 1,
    "decoder.channels": 32,
    "teacher.grid": [GRID, GRID],
    "quantizer.init_after": 1,
    "init_batches": 1,
    "gan.discriminator.width": 8,
    "gan.start": lambda recipe, value: min(value, 1),
    "gan.warmup": lambda recipe, value: min(value, 1),
    "gan.ramp": lambda recipe, value: min(value, 1),
    "optim.warmup_steps": 0,
    "train.precision": "float32",
    "train.steps": STEPS,
    "train.batch_size": BATCH,
    "train.log_every": 1,
    "train.save_every": STEPS,
    "train.eval_images": 8,
    "proposal.width": GPT2["width"],
    "proposal.depth": GPT2["depth"],
    "proposal.heads": 2,
    "proposal.mlp_width": 4 * GPT2["width"],
    "expects.grid": [GRID, GRID],
    "expects.classes": lambda recipe, value: value and len(SYNSETS),
    "tokens.crops": lambda recipe, value: min(value, 2),
    "eval.extractors": lambda recipe, value: [SMALL.get(name, name) for name in value],
    "eval.bootstrap": lambda recipe, value: min(value, 2),
    "eval.worst": lambda recipe, value: min(value, 4),
    "sample.precision": "float32",
    "sample.steps": lambda recipe, value: min(value, GRID * GRID),
    "sample.number": lambda recipe, value: value and min(value, 10),
    "viz.images": 16,
    "viz.points": 60,
    "viz.perplexity": 5.0,
}


def sets(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The overrides of a recipe, as (dotted key, value)."""
    for key, small in SIZES.items():
        value = _at(recipe, key)
        if value is not None:
            changed = small(recipe, value) if callable(small) else small
            if changed != value:
                yield key, changed
    yield from _pixels(recipe)


def _pixels(recipe: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Sizes of images that give GRID x GRID tokens, or more where those would be too small; where a tokenizer is trained at another size than it is used at, one row fewer."""
    data, encoder = recipe.get("data", {}), recipe.get("encoder") or recipe.get("decoder", {})
    if "size" not in data:
        return
    widths, patch = encoder.get("widths"), encoder.get("patch_size")
    token = 2 ** (len(widths) - 1) if widths else patch or 16
    used = max(token * GRID, SMALLEST)
    trained = used - token if "use_size" in data else used
    found = {"data.size": trained, "data.use_size": used, "encoder.image_size": trained}
    yield from ((key, size) for key, size in found.items() if _at(recipe, key) is not None)
    if "teacher" in recipe and "grid" not in recipe["teacher"]:
        yield "teacher.image_size", 56 if recipe["teacher"]["name"] in ("vits14", "dinov2-s", "dinov2-b") else 64


def _at(recipe: Mapping[str, Any], dotted: str) -> Any:
    found: Any = recipe
    for key in dotted.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def picture(rng: random.Random, colour: str, shape: str, size: tuple[int, int]) -> Any:
    """A shape of one colour on a grey ground with noise, as a Pillow image."""
    from PIL import Image, ImageDraw

    grey = rng.randrange(90, 200)
    image = Image.effect_noise(size, 30).point(lambda v: min(255, max(0, v - 128 + grey))).convert("RGB")
    draw, side = ImageDraw.Draw(image), rng.randrange(min(size) // 3, 2 * min(size) // 3)
    left, top = rng.randrange(size[0] - side), rng.randrange(size[1] - side)
    box, third = (left, top, left + side, top + side), side // 3
    if shape == "disc":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.rectangle((left + third, top, left + 2 * third, top + side), fill=COLOURS[colour])
        draw.rectangle((left, top + third, left + side, top + 2 * third), fill=COLOURS[colour])
    return image


def make_imagenet(folder: Path) -> None:
    """`train` and `val` with a folder a synset, JPEGs of several sizes named as ImageNet's."""
    rng = random.Random(0)
    for split, count in (("train", 4), ("val", 2)):
        for synset, colour in zip(SYNSETS, COLOURS, strict=True):
            (folder / split / synset).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                name = f"{synset}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}_{synset}"
                size = rng.choice([(120, 90), (90, 120), (100, 100)])
                made = picture(rng, colour, rng.choice(SHAPES), size)
                made.save(folder / split / synset / f"{name}.JPEG", quality=92)


def make_coco(folder: Path, year: str = "2014") -> None:
    """`train2014` and `val2014`, or those of another year, beside `annotations`, five captions an image."""
    rng = random.Random(0)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in ((f"train{year}", 16), (f"val{year}", 10)):
        (folder / split).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        captions: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
            name = f"COCO_{split}_{number:012d}.jpg"
            picture(rng, colour, shape, rng.choice([(120, 90), (90, 120)])).save(folder / split / name, quality=92)
            images.append({"id": number, "file_name": name, "width": 120, "height": 90})
            said = [
                f"a {colour} {shape}",
                f"one {shape} in {colour}",
                f"a {shape} on a grey ground",
                f"A {colour} {shape}.",
                f"{colour}!",
            ]
            captions += [{"id": 10 * number + i, "image_id": number, "caption": text} for i, text in enumerate(said)]
        file = folder / "annotations" / f"captions_{split}.json"
        file.write_text(json.dumps({"images": images, "annotations": captions}))


def make_weights(folder: Path, names: list[str]) -> None:
    """Random weights in the layout that each network's flag takes; those that are there stay."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        file = folder / f"{_full(name).replace(':', '-').replace('/', '-')}.safetensors"  # as the cache calls it
        if not file.exists():
            save_file(_random_state(name), folder / f".{name}")
            (folder / f".{name}").rename(file)
        if name == "clip" and not (folder / "clip-text.safetensors").exists():  # the cache's name for its other tower
            os.link(file, folder / "clip-text.safetensors")
        if name == "minilm":
            _word_pieces().save(str(folder / "minilm-tokenizer.json"))


def _full(name: str) -> str:
    """What a short name of a network stands for."""
    from tokcli.pretrained import READY

    return READY.get(name, name)


def _random_state(name: str) -> dict[str, Any]:
    import torch

    if name.startswith("gpt2"):
        return _filled(_gpt2_shapes(), name)
    with torch.device("meta"):
        if name == "clip":  # both towers: the file is a teacher's and a text tower's
            import open_clip

            body: Any = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None, device="meta")
        elif name == "minilm":
            from tokcli.pretrained.text import TEXT_TOWERS

            body = TEXT_TOWERS[name](name).body  # type: ignore[call-arg]
        else:
            from tokcli.pretrained import network_class

            body = network_class(name)(_full(name)).body  # type: ignore[call-arg]
    return _filled({key: tuple(t.shape) for key, t in body.state_dict().items()}, name)


def _filled(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, Any]:
    """Matrices and kernels that keep the variance of what goes through them, norms of one, no biases."""
    import torch

    draw = torch.Generator().manual_seed(sum(map(ord, name)))  # others for each name, also of one architecture
    found = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            found[key] = torch.zeros(shape, dtype=torch.int64)
        elif len(shape) > 1:
            gain = 2 if len(shape) == 4 else 1  # kernels stand before a ReLU, which lets half of the variance through
            found[key] = torch.randn(shape, generator=draw) * (gain / math.prod(shape[1:])) ** 0.5
        else:
            found[key] = torch.full(shape, float(key.endswith(("weight", "running_var", "gamma", "logit_scale"))))
    return found


def _word_pieces() -> Any:
    """BERT's kind of tokenizer with letters for words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def _gpt2_shapes() -> dict[str, tuple[int, ...]]:
    """A GPT-2 in Hugging Face's names, whose matrices are stored input x output."""
    width = GPT2["width"]
    shapes: dict[str, tuple[int, ...]] = {}
    products = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for number in range(GPT2["depth"]):
        for part, (rows, columns) in products.items():
            shapes[f"h.{number}.{part}.weight"] = (rows * width, columns * width)
            shapes[f"h.{number}.{part}.bias"] = (columns * width,)
        shapes |= {f"h.{number}.ln_{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")}
    return shapes | {
        "wte.weight": (512, width),
        "wpe.weight": (1024, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }


def main(command: str, *arguments: str) -> None:
    """See the module."""
    if command == "sets":
        file = Path(__file__).parent.parent / "recipes" / f"{arguments[0]}.yaml"
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key, value in sets(recipe):
            print(f"{key}={json.dumps(value, separators=(',', ':'))}")
    elif command in ("imagenet", "coco"):
        make_coco(Path(arguments[0]), *arguments[1:2]) if command == "coco" else make_imagenet(Path(arguments[0]))
    elif command == "weights":
        make_weights(Path(arguments[0]), list(arguments[1:]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
