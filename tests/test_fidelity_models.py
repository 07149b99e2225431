"""Networks that no published checkpoint is imported for, against their layers written out; the others: test_import_numbers.py."""

import pytest
import torch
import torch.nn.functional as F

from tokcli.models import PatchDiscriminator, ViTDecoder, ViTEncoder


@torch.no_grad()
@pytest.mark.parametrize("depth", [2, 3])
def test_the_patch_discriminator_is_tamings_but_for_its_norm(depth: int) -> None:
    # pix2pix (arXiv 1611.07004), appendix 6.1.2, as in taming-transformers' NLayerDiscriminator; GroupNorm for BatchNorm
    torch.manual_seed(0)
    network, images = PatchDiscriminator(depth=depth, width=8), torch.rand(2, 3, 32, 32)
    w = [p.normal_(0.5, 0.5) for p in network.parameters()]
    x = F.leaky_relu(F.conv2d(2 * images - 1, w[0], w[1], 2, 1), 0.2)
    for stage in range(depth):
        kernel, scale, shift = w[2 + 3 * stage : 5 + 3 * stage]
        x = F.conv2d(x, kernel, None, 1 if stage == depth - 1 else 2, 1)
        groups = x.unflatten(1, (min(32, x.shape[1]), -1))
        away = groups - groups.mean((2, 3, 4), keepdim=True)
        x = (away / (away.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()).flatten(1, 2)
        x = F.leaky_relu(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), 0.2)
    wanted = F.conv2d(x, w[-2], w[-1], 1, 1).flatten(1)
    torch.testing.assert_close(network(images), wanted, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_the_vit_decoder_lays_its_patches_side_by_side() -> None:
    # the transformer itself is VQ-KD's decoder, which test_import_numbers.py writes out; pixels are on [-1, 1] inside
    torch.manual_seed(0)
    decoder, codes = ViTDecoder(4, (2, 3), (8, 12), width=16, depth=1, heads=2), torch.randn(2, 6, 4)
    patches = decoder.head(decoder.trunk(decoder.embed(codes), (2, 3)))  # (b, n, 3 x 4 x 4)
    wanted = F.fold(patches.transpose(1, 2), (8, 12), 4, stride=4)
    torch.testing.assert_close(decoder(codes), (wanted + 1) / 2)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (3, 6)])
def test_a_students_positions_at_another_size_are_timms_without_averaging(grid: tuple[int, int]) -> None:
    # as BEiT's code interpolates: bicubic by points; 14x14 learnt at 224 px, 16x16 used at 256 px
    from timm.layers import resample_abs_pos_embed

    trunk = ViTEncoder(4, image_size=20, patch_size=4, width=8, depth=0, heads=2).trunk
    theirs = resample_abs_pos_embed(trunk.positions, list(grid), old_size=[5, 5], antialias=False)
    torch.testing.assert_close(trunk.positions_at(grid), theirs)
