"""Images per second from JPEG bytes to a training square, on one thread: the usual way against ours.

    python scripts/bench_images.py [--images 64] [--size 256] [--rounds 5]

Peers decode with Pillow, resize the short side (bicubic, antialiased), crop the centre, convert to float32:
torchvision's Resize, CenterCrop and ToTensor. Ours decodes with Pillow too, resizes the uint8 tensor, and
leaves the conversion to the device. The two take turns, so that load on the machine meets both.
"""

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop as PeerCrop
from torchvision.transforms import Compose, InterpolationMode, Resize, ToTensor

from tokcli.data.decode import decode
from tokcli.data.transforms import CenterCrop


def photos(count: int, width: int = 500, height: int = 375) -> list[bytes]:
    """JPEGs with the spectrum of photographs: noise at all scales, coarse ones strongest."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        image = np.zeros((height, width, 3))
        for scale in (2, 4, 8, 16, 32, 64, 128):
            noise = rng.integers(0, 256, (height // scale + 2, width // scale + 2, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            image += (np.asarray(layer, dtype=np.float64) - 128) * scale / 128
        file = io.BytesIO()
        Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def seconds(read: Callable[[bytes], torch.Tensor], images: list[bytes]) -> float:
    start = time.perf_counter()
    for data in images:
        read(data)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=256, help="side of the square in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = photos(args.images)
    peer = Compose([Resize(args.size, InterpolationMode.BICUBIC), PeerCrop(args.size), ToTensor()])
    own, rng = CenterCrop(args.size), torch.Generator()

    def theirs(data: bytes) -> torch.Tensor:
        tensor: torch.Tensor = peer(Image.open(io.BytesIO(data)).convert("RGB"))
        return tensor

    def ours(data: bytes) -> torch.Tensor:
        return own(decode(data), rng).contiguous()

    difference = torch.stack([(theirs(d) * 255 - ours(d).float()).abs().round() for d in images])  # warms both up
    rounds = [(seconds(theirs, images), seconds(ours, images)) for _ in range(args.rounds)]
    slow, fast = (args.images / statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    kilobytes = sum(map(len, images)) / len(images) / 1000
    print(f"{args.images} JPEGs of 500x375, {kilobytes:.0f} kB each, to {args.size} px")
    print(f"python {platform.python_version()}, torch {torch.__version__}, vision {torchvision.__version__}")
    print(f"Pillow {PIL.__version__}, {platform.machine()}, 1 thread, median of {args.rounds} rounds")
    print(f"peers, float32    {slow:7.0f} img/s")
    print(f"ours, uint8       {fast:7.0f} img/s   {ratio:.2f}x")
    print(f"difference        at most {int(difference.max())} of 255 levels, {difference.mean():.4f} on average")


if __name__ == "__main__":
    main()
