"""The names that others' checkpoints give to the weights of the networks here.

Each layout is told by the order of its modules, which is that of ours: taming-transformers' VQGAN (arXiv 2012.09841),
LlamaGen's VQ tokenizer (arXiv 2406.06525), MaskGIT's VQGAN (arXiv 2202.04200) as open-muse ported it to PyTorch, and
BEiT v2's VQ-KD (arXiv 2208.06366).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.models.conv import Downsample, PositionAttention, ResidualBlock, Upsample
from tokcli.models.decoders import ConvDecoder
from tokcli.models.encoders import ConvEncoder
from tokcli.models.maskgit import MaskGITDecoder, MaskGITEncoder
from tokcli.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Names:
    """What a publisher of convolutional networks calls their modules.

    Args:
        blocks: side -> a residual block, of its stage and its number there.
        middle: the modules at the grid's resolution that belong to no stage.
        resize: what a change of size adds to its stage's name.
        falling: the decoder's stages are numbered from the image down, as the encoder's are.
    """

    blocks: dict[str, str]
    middle: tuple[str, ...]
    resize: dict[type[nn.Module], str]
    falling: bool


TAMING_RESIZE: dict[type[nn.Module], str] = {Downsample: "downsample.conv", Upsample: "upsample.conv"}
LAYOUTS = {
    "taming": Names(
        {"encoder": "down.{}.block.{}", "decoder": "up.{}.block.{}"},
        ("mid.block_1", "mid.attn_1", "mid.block_2"),
        TAMING_RESIZE,
        True,
    ),
    "llamagen": Names(
        {"encoder": "conv_blocks.{}.res.{}", "decoder": "conv_blocks.{}.res.{}"},
        ("mid.0", "mid.1", "mid.2"),
        TAMING_RESIZE,
        False,
    ),
    "maskgit": Names(
        {"encoder": "down.{}.block.{}", "decoder": "up.{}.block.{}"},
        ("mid.0", "mid.1"),
        {Upsample: "upsample_conv"},
        True,
    ),
}
RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"shortcut": "nin_shortcut"}
# what training left beside the tokenizer
IGNORED = tuple(
    "loss. quantize.codebook_used quantize.cluster_size quantize.embedding.cluster_size quantize.embedding.embed_avg quantize.embedding.initted scaling_layer. teacher_model.".split()
)
Pair = tuple[str, tuple[str, ...]]  # our tensor, and theirs that make it when joined


def convert(state: Mapping[str, Tensor], layout: str, tokenizer: Tokenizer, where: str) -> dict[str, Tensor]:
    """The weights of a foreign checkpoint under our names, as `Tokenizer.load_exported` takes them.

    Args:
        state: their tensors by name.
        layout: "taming", "llamagen", "maskgit" or "beit".
        tokenizer: ours, of the same architecture.
        where: the file, for messages.

    Raises:
        TokError: with the tensors that are missing, left over or of another shape.
    """
    pairs = [*(_vit_pairs() if layout == "beit" else _conv_pairs(tokenizer, LAYOUTS[layout]))]
    if layout == "beit" and "encoder.norm.weight" not in state:  # the norm over patch tokens has two names there
        pairs = [(ours, tuple(n.replace("coder.norm.", "coder.fc_norm.") for n in theirs)) for ours, theirs in pairs]
    wanted = tokenizer.export_state()
    pairs = [(ours, theirs) for ours, theirs in pairs if ours in wanted]
    shapes = {name: _part(wanted[ours].shape, len(theirs)) for ours, theirs in pairs for name in theirs}
    unlike = {
        "missing": [name for name in shapes if name not in state],
        "left over": [name for name in state if name not in shapes and not name.startswith(IGNORED)],
        "of another shape": [
            f"{name} {tuple(state[name].shape)}, not {shape}"
            for name, shape in shapes.items()
            if name in state and _plain(state[name].shape) != _plain(shape)
        ],
    }
    if any(unlike.values()):
        parts = [
            f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for what, names in unlike.items()
            if names
        ]
        raise TokError(
            where,
            f"is not a checkpoint of layout {layout}",
            why="; ".join(parts),
            next="Name the FORMAT that this file was published in",
        )
    found = {ours: torch.cat([state[name] for name in theirs]).reshape(wanted[ours].shape) for ours, theirs in pairs}
    found["quantizer.initialised"] = torch.tensor(True)
    return found


def _part(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    return (shape[0] // parts, *shape[1:])


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """1x1 convolutions of theirs are linears of ours."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def _conv_pairs(tokenizer: Tokenizer, names: Names) -> Iterator[Pair]:
    encoder, decoder = tokenizer.encoder, tokenizer.pixel_decoder
    assert isinstance(encoder, ConvEncoder | MaskGITEncoder) and isinstance(decoder, ConvDecoder | MaskGITDecoder)
    yield "quantizer.codebook", ("quantize.embedding.weight",)
    for ours, theirs in (("encoder.embed", "quant_conv"), ("pixel_decoder.embed", "post_quant_conv")):
        yield from _same(ours, theirs)
    yield from _layers(encoder.layers, "encoder", "encoder", names)
    yield from _layers(decoder.layers, "pixel_decoder", "decoder", names)


def _layers(layers: nn.Sequential, ours: str, theirs: str, names: Names) -> Iterator[Pair]:
    """Walk our layers in order, naming theirs by stage and block; the middle stands between the two convolutions' stages."""
    convs = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    changes = sum(isinstance(layer, Downsample | Upsample | nn.AvgPool2d) for layer in layers)
    length = sum(isinstance(layer, ResidualBlock | PositionAttention) for layer in layers)
    walked, stage, block = 0, 0, 0
    for number, layer in enumerate(layers):
        name = f"{ours}.layers.{number}"
        level = changes - stage if theirs == "decoder" and names.falling else stage
        folder = names.blocks[theirs].format(level, 0).rsplit(".", 2)[0]
        if isinstance(layer, nn.Conv2d):
            yield from _same(name, f"{theirs}.conv_in" if number == convs[0] else f"{theirs}.conv_out")
        elif isinstance(layer, nn.GroupNorm):
            yield from _same(name, f"{theirs}.norm_out")
        elif isinstance(layer, Downsample | Upsample | nn.AvgPool2d):
            if not isinstance(layer, nn.AvgPool2d):
                yield from _same(f"{name}.conv", f"{theirs}.{folder}.{names.resize[type(layer)]}")
            stage, block = stage + 1, 0
        elif isinstance(layer, ResidualBlock | PositionAttention):
            place = walked - (length - len(names.middle)) if theirs == "encoder" else walked
            walked += 1
            if 0 <= place < len(names.middle):
                yield from _inner(layer, name, f"{theirs}.{names.middle[place]}")
            elif isinstance(layer, ResidualBlock):
                yield from _inner(layer, name, f"{theirs}.{names.blocks[theirs].format(level, block)}")
                block += 1
            else:
                yield from _inner(layer, name, f"{theirs}.{folder}.attn.{block - 1}")


def _inner(layer: nn.Module, ours: str, theirs: str) -> Iterator[Pair]:
    if isinstance(layer, PositionAttention):
        yield from _same(f"{ours}.norm", f"{theirs}.norm")
        yield from _same(f"{ours}.out", f"{theirs}.proj_out")
        for kind in ("weight", "bias"):
            yield f"{ours}.qkv.{kind}", tuple(f"{theirs}.{part}.{kind}" for part in "qkv")
        return
    for mine, other in RESIDUAL.items():
        if not isinstance(getattr(layer, mine), nn.Identity):
            yield from _same(f"{ours}.{mine}", f"{theirs}.{other}")


MOST_BLOCKS = 64


def _same(ours: str, theirs: str) -> Iterator[Pair]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", (f"{theirs}.{kind}",)


def _vit_pairs() -> Iterator[Pair]:
    """BEiT's; blocks past the network's depth are dropped by `convert`."""
    yield "quantizer.codebook", ("quantize.embedding.weight",)
    yield from _same("encoder.patches", "encoder.patch_embed.proj")
    yield from _same("feature_decoder.embed", "decoder.patch_embed.proj")
    for ours, theirs, head in (("encoder", "encoder", "encode"), ("feature_decoder", "decoder", "decode")):
        yield f"{ours}.trunk.class_token", (f"{theirs}.cls_token",)
        yield f"{ours}.trunk.positions", (f"{theirs}.pos_embed",)
        yield from _same(f"{ours}.trunk.norm", f"{theirs}.norm")
        for layer in (0, 2):
            yield from _same(f"{ours}.head.{layer}", f"{head}_task_layer.{layer}")
        for block in range(MOST_BLOCKS):
            mine, other = f"{ours}.trunk.blocks.{block}", f"{theirs}.blocks.{block}"
            yield f"{mine}.attention.qkv.weight", (f"{other}.attn.qkv.weight",)
            for bias in ("q_bias", "v_bias"):
                yield f"{mine}.attention.{bias}", (f"{other}.attn.{bias}",)
            inner = {"attention_norm": "norm1", "attention.out": "attn.proj", "mlp_norm": "norm2"}
            for left, right in (inner | {"mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}).items():
                yield from _same(f"{mine}.{left}", f"{other}.{right}")
