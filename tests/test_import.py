"""Others' checkpoints: their names and shapes, and that each tensor lands where it belongs."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokcli import build, loading
from tokcli.artifact.opening import open_artifact
from tokcli.command.options import Options
from tokcli.errors import TokError
from tokcli.models.foreign import convert
from tokcli.recipe.yaml import override, read_yaml, recipes_root
from tokcli.stages.import_tokenizer import FORMATS, main

Shapes = dict[str, tuple[int, ...]]
WIDTHS = (128, 128, 256, 256, 512)


def conv(name: str, i: int, o: int, k: int) -> Shapes:
    return {f"{name}.weight": (o, i, k, k), f"{name}.bias": (o,)}


def norm(name: str, c: int) -> Shapes:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def residual(name: str, i: int, o: int) -> Shapes:
    found = norm(f"{name}.norm1", i) | conv(f"{name}.conv1", i, o, 3) | norm(f"{name}.norm2", o)
    found |= conv(f"{name}.conv2", o, o, 3)
    return found | (conv(f"{name}.nin_shortcut", i, o, 1) if i != o else {})


def attention(name: str, c: int) -> Shapes:
    parts = [conv(f"{name}.{part}", c, c, 1) for part in ("q", "k", "v", "proj_out")]
    return {k: v for part in [norm(f"{name}.norm", c), *parts] for k, v in part.items()}


def published_conv(layout: str, k: int, d: int, widths: tuple[int, ...] = WIDTHS, channels: int = 256) -> Shapes:
    """Names and shapes as in the two repositories' state dicts, written out by their modules' structure."""
    taming = layout == "taming"
    block = (lambda side, level, j: f"{side}.{'down' if side == 'encoder' else 'up'}.{level}.block.{j}") if taming else (
        lambda side, level, j: f"{side}.conv_blocks.{level}.res.{j}"
    )  # fmt: skip
    folder = lambda side, level: block(side, level, 0).rsplit(".", 2)[0]  # noqa: E731
    middle = ("block_1", "attn_1", "block_2") if taming else ("0", "1", "2")
    last, top = len(widths) - 1, widths[-1]
    s = conv("encoder.conv_in", 3, widths[0], 3)
    before = widths[0]
    for level, width in enumerate(widths):
        for j in range(2):
            s |= residual(block("encoder", level, j), before, width)
            before = width
            if level == last:
                s |= attention(f"{folder('encoder', level)}.attn.{j}", width)
        if level < last:
            s |= conv(f"{folder('encoder', level)}.downsample.conv", width, width, 3)
    for side in ("encoder", "decoder"):
        s |= residual(f"{side}.mid.{middle[0]}", top, top) | attention(f"{side}.mid.{middle[1]}", top)
        s |= residual(f"{side}.mid.{middle[2]}", top, top)
    s |= norm("encoder.norm_out", top) | conv("encoder.conv_out", top, channels, 3)
    s |= conv("quant_conv", channels, d, 1) | conv("post_quant_conv", d, channels, 1)
    s |= {"quantize.embedding.weight": (k, d)} | conv("decoder.conv_in", channels, top, 3)
    before = top
    for order, width in enumerate(reversed(widths)):
        level = last - order if taming else order
        for j in range(3):
            s |= residual(block("decoder", level, j), before, width)
            before = width
            if order == 0:
                s |= attention(f"{folder('decoder', level)}.attn.{j}", width)
        if order < last:
            s |= conv(f"{folder('decoder', level)}.upsample.conv", width, width, 3)
    return s | norm("decoder.norm_out", widths[0]) | conv("decoder.conv_out", widths[0], 3, 3)


def published_maskgit(k: int = 1024, d: int = 256, widths: tuple[int, ...] = WIDTHS) -> Shapes:
    """Names and shapes of open-muse's MaskGitVQGAN: two blocks everywhere, no attention, few biases, no quant_conv."""

    def bare(name: str, i: int, o: int) -> Shapes:
        s = norm(f"{name}.norm1", i) | norm(f"{name}.norm2", o)
        s |= {f"{name}.conv1.weight": (o, i, 3, 3), f"{name}.conv2.weight": (o, o, 3, 3)}
        return s | ({f"{name}.nin_shortcut.weight": (o, o, 1, 1)} if i != o else {})

    s: Shapes = {"encoder.conv_in.weight": (widths[0], 3, 3, 3), "quantize.embedding.weight": (k, d)}
    top, below = widths[-1], (widths[0], *widths[:-1])
    above = (*widths[1:], top)
    for level, width in enumerate(widths):
        for j in range(2):
            s |= bare(f"encoder.down.{level}.block.{j}", width if j else below[level], width)
            s |= bare(f"decoder.up.{level}.block.{j}", width if j else above[level], width)
        s |= conv(f"decoder.up.{level}.upsample_conv", width, width, 3) if level else {}
    for j in range(2):
        s |= bare(f"encoder.mid.{j}", top, top) | bare(f"decoder.mid.{j}", top, top)
    s |= norm("encoder.norm_out", top) | conv("encoder.conv_out", top, d, 1) | conv("decoder.conv_in", d, top, 3)
    return s | norm("decoder.norm_out", widths[0]) | conv("decoder.conv_out", widths[0], 3, 3)


def published_beit(
    feature_dim: int, w: int = 768, depth: int = 12, patch: int = 16, grid: int = 14, k: int = 8192, d: int = 32
) -> Shapes:
    def vit(side: str, blocks: int, patches: tuple[int, ...]) -> Shapes:
        s: Shapes = {f"{side}.cls_token": (1, 1, w), f"{side}.pos_embed": (1, 1 + grid * grid, w)}
        s |= {f"{side}.patch_embed.proj.weight": patches, f"{side}.patch_embed.proj.bias": (w,)}
        for i in range(blocks):
            b = f"{side}.blocks.{i}"
            s |= norm(f"{b}.norm1", w) | norm(f"{b}.norm2", w)
            s |= {f"{b}.attn.q_bias": (w,), f"{b}.attn.v_bias": (w,), f"{b}.attn.qkv.weight": (3 * w, w)}
            for name, i_, o in (("attn.proj", w, w), ("mlp.fc1", w, 4 * w), ("mlp.fc2", 4 * w, w)):
                s |= {f"{b}.{name}.weight": (o, i_), f"{b}.{name}.bias": (o,)}
        return s | norm(f"{side}.fc_norm", w)

    s = vit("encoder", depth, (w, 3, patch, patch)) | vit("decoder", 1, (w, d, 1, 1))
    for head, out in (("encode", d), ("decode", feature_dim)):
        s |= {f"{head}_task_layer.0.weight": (w, w), f"{head}_task_layer.0.bias": (w,)}
        s |= {f"{head}_task_layer.2.weight": (out, w), f"{head}_task_layer.2.bias": (out,)}
    s |= {"quantize.embedding.weight": (k, d), "quantize.embedding.cluster_size": (k,), "quantize.cluster_size": (k,)}
    s |= {"quantize.embedding.embed_avg": (k, d), "quantize.embedding.initted": (1,)}
    teacher = {"visual.proj": (768, 512)} if feature_dim == 512 else {"cls_token": (1, 1, 768)}
    s |= {f"teacher_model.{name}": shape for name, shape in teacher.items()}
    return s | {"scaling_layer.shift": (1, 3, 1, 1), "scaling_layer.scale": (1, 3, 1, 1)}


# some of what taming-transformers' loss leaves in its checkpoints: LPIPS and the discriminator with its batch norms
TAMING_LOSS: Shapes = {
    "loss.perceptual_loss.scaling_layer.shift": (1, 3, 1, 1),
    "loss.perceptual_loss.net.slice1.0.weight": (64, 3, 3, 3),
    "loss.perceptual_loss.lin0.model.1.weight": (1, 64, 1, 1),
    "loss.discriminator.main.0.bias": (64,),
    "loss.discriminator.main.3.running_mean": (128,),
    "loss.discriminator.main.3.num_batches_tracked": (),
}
PUBLISHED: dict[str, Shapes] = {
    "taming-vqgan-f16-1024": published_conv("taming", 1024, 256) | TAMING_LOSS,
    "taming-vqgan-f16-16384": published_conv("taming", 16384, 256) | TAMING_LOSS,
    "maskgit-vqgan-f16-1024": published_maskgit(),
    "llamagen-vq16": published_conv("llamagen", 16384, 8) | {"quantize.codebook_used": (65536,)},
    "beit2-vqkd-clip": published_beit(512),
    "beit2-vqkd-dino": published_beit(768),
}


def test_every_format_is_tested() -> None:
    assert set(PUBLISHED) == set(FORMATS)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_names_and_shapes_fill_the_whole_tokenizer(kind: str) -> None:
    form = FORMATS[kind]
    recipe = read_yaml(recipes_root() / "imagenet" / f"tokenizer-{form.method}.yaml")
    override(recipe, form.sets)
    with torch.device("meta"):
        tokenizer = build.build_tokenizer(recipe, form.feature_dim)
        state = {name: torch.empty(shape) for name, shape in PUBLISHED[kind].items()}
        found = convert(state, form.layout, tokenizer, kind)
    wanted = {name: t.shape for name, t in tokenizer.export_state().items() if name != "quantizer.initialised"}
    assert {name: t.shape for name, t in found.items() if name != "quantizer.initialised"} == wanted


SMALL: dict[str, Any] = {
    "data.size": 32, "encoder.image_size": 32, "encoder.widths": [32, 32, 64], "encoder.blocks": 2, "encoder.channels": 16,
    "decoder.widths": [64, 32, 32], "decoder.channels": 16, "quantizer.codebook_size": 12,
}  # fmt: skip


def small(layout: str, d: int) -> dict[str, Tensor]:
    shapes = published_conv(layout, 12, d, (32, 32, 64), 16)
    random = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


@pytest.mark.parametrize(("kind", "d"), [("taming-vqgan-f16-1024", 256), ("llamagen-vq16", 8)])
def test_an_imported_tokenizer_holds_their_tensors_and_works(kind: str, d: int, tmp_path: Path) -> None:
    state = small(FORMATS[kind].layout, d)
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, file)
    made = main(Options(out=tmp_path / "out", device="cpu"), kind=kind, file=file, sets=SMALL)
    artifact = open_artifact(made.path)  # type: ignore[union-attr]
    tokenizer = loading.load_tokenizer(artifact, torch.device("cpu"))
    images = torch.rand(2, 3, 32, 32)
    indices = tokenizer.encode(images)
    decoded = loading.load_decoder(artifact, torch.device("cpu"))(tokenizer.codes(indices))
    assert indices.shape == (2, 64) and decoded.shape == images.shape and artifact.facts["has_decoder"]
    ours, theirs = dict(tokenizer.named_parameters()), state
    torch.testing.assert_close(ours["quantizer.codebook"].data, theirs["quantize.embedding.weight"])
    torch.testing.assert_close(ours["encoder.embed.weight"].data, theirs["quant_conv.weight"])
    first = "encoder.down.0.block.1" if "taming" in kind else "encoder.conv_blocks.0.res.1"
    torch.testing.assert_close(ours["encoder.layers.2.conv2.weight"].data, theirs[f"{first}.conv2.weight"])
    lowest = "decoder.up.2.attn.1" if "taming" in kind else "decoder.conv_blocks.0.attn.1"
    joined = torch.cat([theirs[f"{lowest}.{part}.weight"] for part in "qkv"])
    torch.testing.assert_close(ours["pixel_decoder.layers.7.qkv.weight"].data, joined)


def test_averaged_weights_of_a_training_run_come_before_its_last_ones(tmp_path: Path) -> None:
    """As LlamaGen's own scripts read its checkpoints."""
    averaged = small("llamagen", 8)
    torch.save({"model": {k: t + 1 for k, t in averaged.items()}, "ema": averaged, "steps": 5}, tmp_path / "a.pt")
    made = main(Options(out=tmp_path / "out", device="cpu"), kind="llamagen-vq16", file=tmp_path / "a.pt", sets=SMALL)
    tokenizer = loading.load_tokenizer(open_artifact(made.path), torch.device("cpu"))  # type: ignore[union-attr]
    torch.testing.assert_close(tokenizer.encoder.embed.weight.data, averaged["quant_conv.weight"])


def test_a_checkpoint_of_another_layout_is_told_in_one_line(tmp_path: Path) -> None:
    state = small("taming", 256)
    state["decoder.extra.weight"] = state.pop("decoder.conv_out.bias")
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(
        TokError,
        match=r"a\.pt: is not a checkpoint of layout taming: 1 missing \(decoder\.conv_out\.bias\); 1 left over \(decoder\.extra",
    ):
        main(
            Options(out=tmp_path / "out", device="cpu"),
            kind="taming-vqgan-f16-1024",
            file=tmp_path / "a.pt",
            sets=SMALL,
        )
    assert not (tmp_path / "out").exists()


def test_tensors_of_another_shape_are_told_by_their_own_names(tmp_path: Path) -> None:
    state = small("taming", 256)
    name = "encoder.down.2.block.0.nin_shortcut.weight"
    state[name] = state[name].transpose(0, 1).contiguous()  # as many numbers, in another order
    state["decoder.mid.attn_1.k.weight"] = torch.zeros(1, 64, 1, 1)  # one of three that are joined
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(TokError) as refused:
        main(
            Options(out=tmp_path / "o", device="cpu"), kind="taming-vqgan-f16-1024", file=tmp_path / "a.pt", sets=SMALL
        )
    assert "2 of another shape" in str(refused.value) and f"{name} (32, 64, 1, 1), not (64, 32, 1, 1)" in str(
        refused.value
    )


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "run",))

    with open(tmp_path / "evil.ckpt", "wb") as file:
        pickle.dump({"state_dict": Evil()}, file)
    with pytest.raises(TokError, match=r"evil\.ckpt: cannot be read as weights"):
        main(Options(out=tmp_path / "out", device="cpu"), kind="llamagen-vq16", file=tmp_path / "evil.ckpt")
    assert not (tmp_path / "run").exists()


def test_lightnings_callbacks_are_read_as_inert_objects(tmp_path: Path) -> None:
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    sys.modules.update({names[0]: types.ModuleType(names[0]), names[1]: types.ModuleType(names[1]), names[2]: module})
    try:
        torch.save({"state_dict": small("taming", 256), "callbacks": {callback: {"best": 0.1}}}, tmp_path / "l.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    made = main(
        Options(out=tmp_path / "out", device="cpu"), kind="taming-vqgan-f16-1024", file=tmp_path / "l.ckpt", sets=SMALL
    )
    assert open_artifact(made.path).facts["imported"]["format"] == "taming-vqgan-f16-1024"  # type: ignore[union-attr]
