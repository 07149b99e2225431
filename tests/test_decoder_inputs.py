"""What a pixel decoder is trained on: indices of frozen tokenizers, computed once where images do not change."""

import torch
from torch import Tensor

from tokcli.data.batches import Batch
from tokcli.training import encoding
from tokcli.training.encoding import Encoding


class Counting:
    """A tokenizer whose indices are an image's number, and how often it was asked."""

    calls = 0

    def encode(self, images: Tensor) -> Tensor:
        self.calls += 1
        return (images[:, 0, 0] * 255).round().long()


def ask(encode: Encoding, numbers: list[int]) -> Tensor:
    pixels = torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    batch = Batch(pixels, torch.tensor(numbers), torch.tensor(numbers))
    return encode(batch, pixels.float() / 255)


def test_images_that_do_not_change_are_encoded_once() -> None:
    tokenizer = Counting()
    encode = Encoding(tokenizer, 6, 2)  # type: ignore[arg-type]
    for numbers in ([0, 1, 2], [3, 4, 5], [5, 0, 4], [2, 3, 1]):
        assert ask(encode, numbers).tolist() == [[n, n] for n in numbers]
    assert tokenizer.calls == 2


def test_random_views_and_sets_too_large_for_memory_are_encoded_each_time(monkeypatch) -> None:
    monkeypatch.setattr(encoding, "KEPT", 11)
    for count in (0, 6):
        tokenizer = Counting()
        encode = Encoding(tokenizer, count, 2)  # type: ignore[arg-type]
        assert [ask(encode, [1, 2]).tolist() for _ in range(2)] == [[[1, 1], [2, 2]]] * 2
        assert tokenizer.calls == 2
