"""Encoders, decoders and the tokenizer: published sizes, grids, shapes, states."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.models import (
    DECODERS,
    ENCODERS,
    ConvDecoder,
    ConvEncoder,
    FeatureDecoder,
    PatchDiscriminator,
    Tokenizer,
    ViTDecoder,
    ViTEncoder,
)
from tokcli.models.blocks import Attention
from tokcli.quantizers import QUANTIZERS

SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
BASE: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12}
DECODER_KEYS: dict[str, dict[str, Any]] = {
    "conv": {"widths": [16, 8, 8], "blocks": 1, "channels": 8},
    "maskgit": {"widths": [16, 8, 8], "blocks": 1},
    "vit": SMALL,
}
ENCODER_KEYS: dict[str, dict[str, Any]] = {
    "conv": {"widths": [8, 8, 16], "blocks": 1, "channels": 8},
    "maskgit": {"widths": [8, 8, 16], "blocks": 1},
    "vit": {"patch_size": 4, **SMALL},
}


def encoder(**keys: Any) -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(4, **{"image_size": 16, "patch_size": 4, **SMALL, **keys})


def tokenizer(quantizer: str = "vq", **keys: Any) -> Tokenizer:
    keys = {"codebook_size": 8, "init": "uniform", **keys} if quantizer == "vq" else keys
    decoder = FeatureDecoder(4, 6, (4, 4), width=16, heads=2)
    return Tokenizer(encoder(), QUANTIZERS[quantizer](code_dim=4, **keys), decoder)


def images(b: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(b, 3, height, width, generator=torch.Generator().manual_seed(1))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "build, count",
    [
        (lambda: ViTEncoder(32, image_size=224, patch_size=16, **BASE), 86_404_640),
        (lambda: FeatureDecoder(32, 512, (14, 14), width=768, heads=12), 8_250_368),
        (lambda: ConvEncoder(256, image_size=256, widths=[128, 128, 256, 256, 512]).layers, 29_298_176),
        (lambda: ConvEncoder(256, image_size=256, widths=[128, 128, 256, 512]).layers, 26_345_728),
        (lambda: PatchDiscriminator(depth=2), 663_361),
        (lambda: PatchDiscriminator(depth=3), 2_765_633),
        (lambda: ConvDecoder(32, (32, 32), 256, widths=[512, 256, 128, 128]).layers, 38_316_163),
        (lambda: ConvDecoder(32, (16, 16), 256, widths=[512, 256, 256, 128, 128]).layers, 42_449_795),
        (lambda: ViTDecoder(32, (14, 14), 224, **BASE), 86_405_376),
    ],
)
def test_published_networks_have_the_published_number_of_parameters(build: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        assert parameters(build()) == count


def test_attention_equals_its_formula() -> None:
    attention, x = Attention(8, 2), torch.randn(2, 5, 8)
    nn.init.normal_(attention.q_bias), nn.init.normal_(attention.v_bias)
    q, k, v = (x @ attention.qkv.weight.T).chunk(3, -1)
    q, v = q + attention.q_bias, v + attention.v_bias
    heads = [(q[..., h] @ k[..., h].transpose(1, 2) / 2).softmax(-1) @ v[..., h] for h in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)))


def test_every_encoder_is_tested() -> None:
    assert set(ENCODER_KEYS) | {"pretrained"} == set(ENCODERS)  # whose grid is the same at any size: test_joint.py


@pytest.mark.parametrize("name", ENCODER_KEYS)
@pytest.mark.parametrize("height, width", [(16, 16), (32, 32), (8, 24)])
def test_encoders_give_one_feature_per_patch_at_any_size(name: str, height: int, width: int) -> None:
    model = ENCODERS[name](4, image_size=16, **ENCODER_KEYS[name])
    assert model.grid((height, width)) == (height // 4, width // 4)
    assert model(images(2, height, width)).shape == (2, height * width // 16, 4)


@pytest.mark.parametrize("name", ENCODER_KEYS)
def test_encoders_refuse_sizes_that_leave_part_of_a_patch(name: str) -> None:
    model = ENCODERS[name](4, image_size=16, **ENCODER_KEYS[name])
    with pytest.raises(TokError, match="must divide"):
        model(images(1, 18, 16))


def test_features_follow_the_row_major_order_of_the_grid() -> None:
    shallow = encoder(depth=0)  # without attention a patch changes its own feature only
    one, other = images(1, 8, 24), images(1, 8, 24)
    other[:, :, 4:8, 8:12] = 0
    changed = (shallow(one) != shallow(other)).any(-1).nonzero()[:, 1]
    assert changed.tolist() == [1 * 6 + 2]


def test_features_do_not_depend_on_the_batch() -> None:
    model, x = encoder().eval(), images(5)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]))


def test_positions_of_another_size_are_the_resized_table() -> None:
    trunk = encoder().trunk
    with torch.no_grad():
        trunk.positions[:, 1:] = torch.arange(4.0).repeat(4)[None, :, None]  # grows from left to right
    table = trunk.positions_at((2, 8))
    assert torch.equal(table[:, 0], trunk.positions[:, 0])
    rows = table[0, 1:, 0].view(2, 8)
    assert torch.allclose(rows[0], rows[1], atol=1e-5) and (rows[0].diff() > 0).all()


def test_without_a_class_token_there_is_one_position_less() -> None:
    with_token, without = encoder(), encoder(class_token=False)
    assert parameters(with_token) - parameters(without) == 2 * 16
    assert without(images()).shape == (3, 16, 4)


def test_dropout_acts_in_train_mode_only() -> None:
    model = encoder(dropout=0.5)
    assert not torch.equal(model(images()), model(images()))
    model.eval()
    assert torch.equal(model(images()), model(images()))


def test_feature_decoder_predicts_one_teacher_feature_per_code() -> None:
    decoder = FeatureDecoder(4, 6, (4, 4), width=16, heads=2)
    assert decoder(torch.randn(2, 16, 4)).shape == (2, 16, 6)
    assert decoder(torch.randn(2, 10, 4), (2, 5)).shape == (2, 10, 6)


def test_every_decoder_is_tested() -> None:
    assert set(DECODER_KEYS) == set(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_draw_the_image_of_their_grid(name: str) -> None:
    decoder = DECODERS[name](4, (4, 4), 16, **DECODER_KEYS[name])
    assert decoder(torch.randn(2, 16, 4)).shape == (2, 3, 16, 16)
    assert decoder(torch.randn(2, 10, 4), (2, 5)).shape == (2, 3, 8, 20)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_support_grids_that_are_not_square(name: str) -> None:
    decoder = DECODERS[name](4, (2, 4), (8, 16), **DECODER_KEYS[name])
    assert decoder(torch.randn(1, 8, 4)).shape == (1, 3, 8, 16)


@pytest.mark.parametrize("name", DECODERS)
def test_codes_are_drawn_in_row_major_order_of_the_grid(name: str) -> None:
    decoder = DECODERS[name](4, (4, 4), 16, **DECODER_KEYS[name])
    codes = torch.zeros(1, 16, 4)
    codes[0, 1 * 4 + 3] = 100.0
    if not isinstance(decoder, ViTDecoder):
        # GroupNorm and attention spread a code over the image: look at what enters them
        seen: list[Tensor] = []
        decoder.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        decoder(codes)
        change = (seen[0] - seen[0][:, :, :1, :1]).abs().sum(1)[0]
    else:
        shallow = ViTDecoder(4, (4, 4), 16, width=16, depth=0, heads=2)
        pixels = (shallow(codes) - shallow(torch.zeros(1, 16, 4))).abs().sum(1)[0]
        change = pixels.unflatten(1, (4, 4)).unflatten(0, (4, 4)).sum((1, 3))
    assert change.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_start_near_mid_grey_and_do_not_clamp(name: str) -> None:
    decoder = DECODERS[name](4, (4, 4), 16, **DECODER_KEYS[name])
    assert abs(decoder(torch.randn(4, 16, 4)).mean().item() - 0.5) < 0.25
    with torch.no_grad():
        decoder.last_layer.mul_(1e4)
    assert decoder(torch.randn(4, 16, 4)).abs().max() > 2


def test_conv_decoder_keeps_channels_last_through_its_stages() -> None:
    decoder = ConvDecoder(4, (4, 4), 16, **DECODER_KEYS["conv"])
    seen = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda *hook: seen.append(hook[-1]))
    with torch.no_grad():
        decoder(torch.randn(2, 16, 4))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: encoder().grid(18), "encoder.patch_size: must divide the image size"),
        (lambda: encoder(heads=3), "heads: must divide the width"),
        (lambda: ConvDecoder(4, (4, 4), 32, widths=[8, 8]), "decoder.widths: 2 stages turn a 4x4 grid into 8x8"),
        (lambda: ViTDecoder(4, (4, 4), (16, 32), **SMALL), "does not cut the image into square patches"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(TokError, match=message):
        build()


def test_encode_gives_the_indices_whose_codes_are_z_q() -> None:
    model = tokenizer().eval()
    indices = model.encode(images())
    assert indices.shape == (3, 16) and indices.dtype == torch.int64
    assert torch.equal(model.codes(indices), model(images()).z_q)


def test_encode_is_the_same_at_any_batch_size() -> None:
    model = tokenizer().eval()
    singly = torch.cat([model.encode(image[None]) for image in images(5)])
    assert torch.equal(singly, model.encode(images(5)))


def test_encode_refuses_train_mode_and_the_yardstick_without_codes() -> None:
    with pytest.raises(RuntimeError, match="eval"):
        tokenizer().train().encode(images())
    with pytest.raises(TokError, match="without a quantizer"):
        tokenizer("none").eval().encode(images())


def test_one_training_step_reaches_every_parameter() -> None:
    model = tokenizer()
    assert model.feature_decoder is not None
    quantized = model(images())
    (model.feature_decoder(quantized.z_q).square().sum() + sum(quantized.losses.values())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("keys", [{}, {"metric": "euclidean"}, {"learning": "gradient"}])
def test_exported_state_holds_the_codebook_and_no_training_records(keys: dict[str, Any]) -> None:
    exported = tokenizer(**keys).export_state()
    assert {k for k in exported if k.startswith("quantizer.")} == {"quantizer.codebook", "quantizer.initialised"}


@pytest.mark.parametrize("keys", [{}, {"metric": "euclidean"}])
def test_exported_state_loads_into_the_same_indices_and_can_train_on(keys: dict[str, Any]) -> None:
    trained = tokenizer(**keys)
    trained(images())
    trained.quantizer.after_step(0)
    torch.manual_seed(9)
    fresh = tokenizer(**keys, seed=5)
    fresh.load_exported(trained.export_state(), "model.safetensors")
    assert torch.equal(fresh.eval().encode(images()), trained.eval().encode(images()))
    fresh.train().quantizer.after_step(0)  # no batch: running means must hold the loaded codes
    torch.testing.assert_close(fresh.codes(torch.arange(8)), trained.codes(torch.arange(8)))


def test_load_exported_is_strict() -> None:
    model = tokenizer()
    exported = model.export_state()
    missing = {k: v for k, v in exported.items() if k != "quantizer.codebook"}
    for state, name in [
        (missing, "quantizer.codebook"),
        ({**exported, "more": torch.zeros(1)}, "more"),
        (model.state_dict(), "idle_steps"),
    ]:
        with pytest.raises(TokError, match=name):
            model.load_exported(state, "model.safetensors")
