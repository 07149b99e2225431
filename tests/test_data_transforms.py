"""Images of any shape to squares."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop as TorchvisionCrop
from torchvision.transforms import InterpolationMode, Resize, TenCrop

from tokcli.data.randomness import generator
from tokcli.data.transforms import TRANSFORMS, CenterCrop, CropViews, RandomResizedCrop, resize, resize_short_side


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=generator(0, height, width), dtype=torch.uint8)


def photo(height: int, width: int) -> torch.Tensor:
    return resize(noise(max(1, height // 8), max(1, width // 8)), height, width)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(1, 1), (9, 40), (40, 9), (16, 16), (1, 3000), (3000, 1)])
def test_any_shape_becomes_the_square(name: str, shape: tuple[int, int]) -> None:
    out = TRANSFORMS[name](16)(noise(*shape), generator(0))
    assert out.shape == (3, 16, 16) and out.dtype == torch.uint8


@pytest.mark.parametrize("name", TRANSFORMS)
def test_equal_generators_give_equal_crops_and_others_do_not(name: str) -> None:
    transform, image = TRANSFORMS[name](16), photo(40, 60)
    first, again, other = (transform(image, generator(0, key)) for key in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == transform.deterministic


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_image_itself_is_not_changed(name: str) -> None:
    image = photo(20, 30)
    kept = image.clone()
    TRANSFORMS[name](16)(image, generator(0)).zero_()
    assert torch.equal(image, kept)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (70, 64), (64, 64)])
def test_center_crop_is_pillows_within_two_levels(shape: tuple[int, int]) -> None:
    image = photo(*shape)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    theirs = TorchvisionCrop(64)(Resize(64, InterpolationMode.BICUBIC)(pil))
    ours = CenterCrop(64)(image, torch.Generator()).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 2


def test_a_long_strip_does_not_grow_without_limit() -> None:
    assert resize_short_side(noise(1, 3000), 16).shape == (3, 16, 64)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = noise(16, 16)
    assert torch.equal(CenterCrop(16)(image, torch.Generator()), image)


def test_flip_happens_half_the_time() -> None:
    transform, image = CenterCrop(2, flip=True), noise(2, 2)
    flipped = [torch.equal(transform(image, generator(0, i)), image.flip(2)) for i in range(200)]
    assert 70 < sum(flipped) < 130


def test_random_resized_crop_takes_the_area_it_was_asked_for() -> None:
    transform = RandomResizedCrop(8, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    boxes = [transform._box(100, 100, generator(0, i)) for i in range(50)]
    assert {(h, w) for _, _, h, w in boxes} == {(50, 50)}
    assert len({top for top, *_ in boxes}) > 20 and all(0 <= top <= 50 and 0 <= left <= 50 for top, left, *_ in boxes)


def test_random_resized_crop_of_a_strip_is_its_centre() -> None:
    assert RandomResizedCrop(8, ratio=(1.0, 1.0))._box(10, 1000, generator(0)) == (0, 495, 10, 10)


def test_views_are_named_in_order_and_begin_with_the_centre_crop() -> None:
    views, image = CropViews(16, crops=2, flip=True), photo(40, 60)
    assert views.names == ["center", "center-flip", "crop1", "crop1-flip", "crop2", "crop2-flip"]
    out = views(image, 5)
    assert out.shape == (6, 3, 16, 16)
    assert torch.equal(out[0], CenterCrop(16)(image, torch.Generator()))
    assert torch.equal(out[3], out[2].flip(2)) and not torch.equal(out[2], out[4])


def test_a_view_depends_on_seed_and_sample_only() -> None:
    image = photo(40, 60)
    some, more = CropViews(16, crops=1)(image, 3), CropViews(16, crops=4)(image, 3)
    assert torch.equal(some, more[:2])
    assert not torch.equal(some[1], CropViews(16, crops=1)(image, 4)[1])
    assert not torch.equal(some[1], CropViews(16, crops=1, seed=1)(image, 3)[1])


def test_scale_of_one_crops_at_random_places_without_zoom() -> None:
    image = photo(16, 40)  # its short side is the size already, so that each crop must be a window of it
    crops = CropViews(16, crops=6, scale=(1.0, 1.0))(image, 0)[1:]
    windows = [image[:, :, x : x + 16] for x in range(25)]
    places = [next(x for x, window in enumerate(windows) if torch.equal(crop, window)) for crop in crops]
    assert len(set(places)) > 2


def test_corners_are_torchvisions_ten_crops_of_the_central_square() -> None:
    views, image = CropViews(20, corners=[1.1, 1.05], flip=True), photo(22, 40)
    ten = TenCrop(20)(image[:, :, 9:31])  # 1.1 x 20 = 22 pixels, so that nothing is resized
    in_our_order = [ten[number] for number in (4, 9, 0, 6, 1, 5, 2, 8, 3, 7)]  # a mirrored left corner is its right one
    assert views.names[:4] == ["center-1.1", "center-1.1-flip", "top-left-1.1", "top-left-1.1-flip"]
    assert torch.equal(views(image, 0)[:10], torch.stack(in_our_order)) and len(views.names) == 20
    assert torch.equal(views(image, 0)[10], CenterCrop(21)(image, torch.Generator())[:, :20, :20])  # round(0.5) is 0


def test_corners_within_the_view_or_beside_random_crops_are_refused() -> None:
    for settings in ({"corners": [1.0]}, {"corners": [1.003]}, {"corners": [1.5], "crops": 1}):
        with pytest.raises(ValueError, match="so that corners differ, and without random crops"):
            CropViews(8, **settings)  # type: ignore[arg-type]
