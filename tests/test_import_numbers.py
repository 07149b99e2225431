"""Imported tokenizers compute what their publishers' networks compute, written here a second time from their structure."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_import import Shapes, published_beit, published_conv, published_maskgit
from torch import Tensor

from tokcli import loading
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.command.options import Options
from tokcli.models import MaskGITDecoder, MaskGITEncoder, Tokenizer
from tokcli.stages.import_tokenizer import FORMATS, main

State = dict[str, Tensor]
CODES, HEADS = 12, 2
CONV: dict[str, Any] = {
    "data.size": 32, "encoder.image_size": 32, "encoder.widths": [32, 32, 64], "decoder.widths": [64, 32, 32],
    "quantizer.codebook_size": CODES,
}  # fmt: skip
WITH_1X1 = {"encoder.channels": 16, "decoder.channels": 16}
VIT: dict[str, Any] = {
    "data.size": 16, "data.use_size": 16, "encoder.image_size": 16, "encoder.patch_size": 4, "encoder.width": 32,
    "encoder.depth": 2, "encoder.heads": HEADS, "decoder.width": 32, "decoder.heads": HEADS, "quantizer.codebook_size": CODES,
}  # fmt: skip


def random_state(shapes: Shapes) -> State:
    """Weights that keep activations near unit size, and no norm or bias at the value it starts from."""
    random = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    for name, t in state.items():
        if name.endswith("weight") and t.ndim > 1 and not name.startswith("quantize"):
            t /= t[0].numel() ** 0.5
        elif t.ndim == 1:
            t.mul_(0.1).add_(float(name.endswith("weight")))
    return state


def conv(s: State, name: str, x: Tensor) -> Tensor:
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, s.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)


def residual(s: State, name: str, x: Tensor, layout: str) -> Tensor:
    y = conv(s, f"{name}.conv1", F.silu(norm(s, f"{name}.norm1", x)))
    y = conv(s, f"{name}.conv2", F.silu(norm(s, f"{name}.norm2", y)))
    if f"{name}.nin_shortcut.weight" in s:  # MaskGIT's takes what the block made, the others' what entered it
        x = conv(s, f"{name}.nin_shortcut", y if layout == "maskgit" else x)
    return x + y


def attention(s: State, name: str, x: Tensor) -> Tensor:
    y = norm(s, f"{name}.norm", x)
    q, k, v = (conv(s, f"{name}.{part}", y).flatten(2) for part in "qkv")  # (b, c, n)
    scores = torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5
    mixed = torch.einsum("bij,bcj->bci", scores.softmax(-1), v).view_as(y)
    return x + conv(s, f"{name}.proj_out", mixed)


def stage(s: State, folder: str, blocks: int, x: Tensor, layout: str) -> Tensor:
    for j in range(blocks):
        x = residual(s, f"{folder}.{'res' if layout == 'llamagen' else 'block'}.{j}", x, layout)
        if f"{folder}.attn.{j}.q.weight" in s:
            x = attention(s, f"{folder}.attn.{j}", x)
    return x


def middle(s: State, side: str, x: Tensor, layout: str) -> Tensor:
    if layout == "maskgit":
        return residual(s, f"{side}.mid.1", residual(s, f"{side}.mid.0", x, layout), layout)
    first, mixer, last = ("block_1", "attn_1", "block_2") if layout == "taming" else "012"
    x = attention(s, f"{side}.mid.{mixer}", residual(s, f"{side}.mid.{first}", x, layout))
    return residual(s, f"{side}.mid.{last}", x, layout)


def conv_encode(s: State, x: Tensor, layout: str) -> Tensor:
    """`z_e` (b, d, h, w) of images in the range that the network was trained on."""
    x = conv(s, "encoder.conv_in", x)
    for level in range(3):
        folder = f"encoder.{'conv_blocks' if layout == 'llamagen' else 'down'}.{level}"
        x = stage(s, folder, 2, x, layout)
        if level < 2 and layout == "maskgit":
            x = F.avg_pool2d(x, 2)
        elif level < 2:
            down = f"{folder}.downsample.conv"
            x = F.conv2d(F.pad(x, (0, 1, 0, 1)), s[f"{down}.weight"], s[f"{down}.bias"], stride=2)
    x = F.silu(norm(s, "encoder.norm_out", middle(s, "encoder", x, layout)))
    x = conv(s, "encoder.conv_out", x)
    return x if layout == "maskgit" else conv(s, "quant_conv", x)


def conv_decode(s: State, x: Tensor, layout: str) -> Tensor:
    x = x if layout == "maskgit" else conv(s, "post_quant_conv", x)
    x = middle(s, "decoder", conv(s, "decoder.conv_in", x), layout)
    for order in range(3):  # from the grid's resolution up
        folder = f"decoder.conv_blocks.{order}" if layout == "llamagen" else f"decoder.up.{2 - order}"
        x = stage(s, folder, 2 if layout == "maskgit" else 3, x, layout)
        if order < 2:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = conv(s, f"{folder}.upsample_conv" if layout == "maskgit" else f"{folder}.upsample.conv", x)
    return conv(s, "decoder.conv_out", F.silu(norm(s, "decoder.norm_out", x)))


def vit(s: State, side: str, x: Tensor) -> Tensor:
    """Normalised patch tokens (b, n, w) of a map (b, c, h, w)."""
    patch = s[f"{side}.patch_embed.proj.weight"]
    x = F.conv2d(x, patch, s[f"{side}.patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([s[f"{side}.cls_token"].expand(len(x), -1, -1), x], 1) + s[f"{side}.pos_embed"]

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, s[f"{name}.weight"], s[f"{name}.bias"])

    def layer_norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)

    for i in range(2 if side == "encoder" else 1):
        b = f"{side}.blocks.{i}"
        q, k, v = F.linear(layer_norm(f"{b}.norm1", x), s[f"{b}.attn.qkv.weight"]).chunk(3, -1)
        q, v = q + s[f"{b}.attn.q_bias"], v + s[f"{b}.attn.v_bias"]
        heads = [(q_ @ k_.mT / q_.shape[-1] ** 0.5).softmax(-1) @ v_
                 for q_, k_, v_ in zip(q.chunk(HEADS, -1), k.chunk(HEADS, -1), v.chunk(HEADS, -1), strict=True)]  # fmt: skip
        x = x + linear(f"{b}.attn.proj", torch.cat(heads, -1))
        x = x + linear(f"{b}.mlp.fc2", F.gelu(linear(f"{b}.mlp.fc1", layer_norm(f"{b}.norm2", x))))
    x = layer_norm(f"{side}.fc_norm", x[:, 1:])
    task = f"{side[:-1]}_task_layer"  # encode_task_layer
    return linear(f"{task}.2", linear(f"{task}.0", x).tanh())


def imported(kind: str, file: Path, sets: dict[str, Any]) -> tuple[Artifact, Tokenizer]:
    made = main(Options(out=file.parent / "out", device="cpu"), kind=kind, file=file, sets=sets)
    artifact = open_artifact(made.path)  # type: ignore[union-attr]
    return artifact, loading.load_tokenizer(artifact, torch.device("cpu"))


def write(state: State, file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"model": state} if file.suffix == ".pt" else state, file)


@pytest.mark.parametrize(
    "kind, file, d",
    [
        ("maskgit-vqgan-f16-1024", "pytorch_model.bin", 256),
        ("maskgit-vqgan-f16-1024", "model.safetensors", 256),
        ("taming-vqgan-f16-1024", "last.ckpt", 256),
        ("llamagen-vq16", "vq_ds16_c2i.pt", 8),
    ],
)
@torch.no_grad()
def test_imported_conv_networks_give_their_indices_and_images(kind: str, file: str, d: int, tmp_path: Path) -> None:
    layout = FORMATS[kind].layout
    maskgit = layout == "maskgit"
    widths = tuple(CONV["encoder.widths"])
    state = random_state(
        published_maskgit(CODES, d, widths) if maskgit else published_conv(layout, CODES, d, widths, 16)
    )
    write(state, tmp_path / file)
    artifact, tokenizer = imported(kind, tmp_path / file, CONV if maskgit else CONV | WITH_1X1)
    images = torch.rand(2, 3, 32, 48)

    z_e = conv_encode(state, images if maskgit else 2 * images - 1, layout).permute(0, 2, 3, 1)  # (b, 8, 12, d)
    codes = state["quantize.embedding.weight"]
    if layout == "llamagen":
        z_e, codes = F.normalize(z_e, dim=-1), F.normalize(codes, dim=-1)
    theirs = (z_e[..., None, :] - codes).square().sum(-1).argmin(-1)
    ours = tokenizer.encode(images)
    assert torch.equal(ours, theirs.flatten(1)) and len(ours.unique()) > 3

    drawn = conv_decode(state, codes[theirs].permute(0, 3, 1, 2), layout)
    decoded = loading.load_decoder(artifact, torch.device("cpu"))(tokenizer.codes(ours), (8, 12))
    torch.testing.assert_close(decoded, drawn if maskgit else (drawn + 1) / 2, atol=1e-4, rtol=0)
    assert decoded.std() > 0.05


@torch.no_grad()
def test_an_imported_vqkd_gives_their_indices_and_features(tmp_path: Path) -> None:
    state = random_state(published_beit(512, w=32, depth=2, patch=4, grid=4, k=CODES))
    state["quantize.embedding.weight"] = codes = F.normalize(state["quantize.embedding.weight"], dim=1)
    write(state, tmp_path / "vqkd.pth")
    _, tokenizer = imported("beit2-vqkd-clip", tmp_path / "vqkd.pth", VIT)
    images = torch.rand(2, 3, 16, 16)
    theirs = (F.normalize(vit(state, "encoder", 2 * images - 1), dim=-1) @ codes.T).argmax(-1)
    ours = tokenizer.encode(images)
    assert torch.equal(ours, theirs) and len(ours.unique()) > 3
    predicted = vit(state, "decoder", codes[theirs].transpose(1, 2).unflatten(2, (4, 4)))
    assert tokenizer.feature_decoder is not None
    torch.testing.assert_close(tokenizer.feature_decoder(tokenizer.codes(ours)), predicted, atol=1e-4, rtol=0)


def test_maskgits_networks_have_as_many_parameters_as_the_published_modules() -> None:
    with torch.device("meta"):
        encoder = MaskGITEncoder(256, image_size=256, widths=[128, 128, 256, 256, 512])
        decoder = MaskGITDecoder(256, (16, 16), 256, widths=[512, 256, 256, 128, 128])
    for side, network, count in (("encoder", encoder, 23_775_104), ("decoder", decoder, 30_478_339)):
        shapes = [torch.Size(shape) for name, shape in published_maskgit().items() if name.startswith(side)]
        assert sum(s.numel() for s in shapes) == sum(p.numel() for p in network.parameters()) == count
