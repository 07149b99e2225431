"""What one device reaches: training, sampling and tokenizing at published sizes, as a table and as JSON.

    python scripts/gpu_table.py [--toy] [--out gpu-check.json] [--seconds 4]
    python scripts/gpu_table.py --compare a.json b.json

Networks have random weights and images are random, on the device already: neither reading nor decoding is measured, nor several devices.
Training steps are those of the recipe (precision, optimizer, teacher, losses, adversary at work) at the batch size of the row,
which is halved where memory does not suffice. `TFLOP/s` counts products of matrices and convolutions, as `tok --dry-run` does (of
a proposal network 6 a weight and token), `of peak` is their share of the dense bfloat16 rate of the vendor's data sheet, where the
device is known here, `of product` of what one large bfloat16 product reaches on this machine. --toy takes recipes/toy, whose figures say nothing.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tokcli import __version__, build
from tokcli.command import compute
from tokcli.device import emulated_bfloat16, on_meta, tensor_cores
from tokcli.errors import TokError
from tokcli.methods import method_class, resolve
from tokcli.proposals import Sampling
from tokcli.recipe.check import check, resolved
from tokcli.recipe.yaml import find_recipe, read_yaml
from tokcli.stages import train_proposal, train_tokenizer

# name: (recipe, recipe of the toy, samples a step)
TOKENIZERS = {
    "VQ-KD ViT-B": ("imagenet/tokenizer-vqkd", "toy/tokenizer-vqkd", 128),
    "VQGAN f16, GAN": ("imagenet/tokenizer-vqgan", "toy/tokenizer-vqgan", 32),
}
PROPOSALS = {
    "AR 327M": ("imagenet/proposal-ar-medium", "toy/proposal-ar", 64),
    "MaskGIT": ("imagenet/proposal-nar", "toy/proposal-nar", 128),
}
BATCHES, TOY_BATCHES = (1, 64, 256), (1, 2)
TOKENIZING, TOY = 256, 2
# dense bfloat16 TFLOP/s of data sheets, by a part of the device's name
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "A10": 125, "L40S": 362, "L4": 121, "4090": 165}
COLUMNS = ("batch", "images/s", "tokens/s", "TFLOP/s", "of peak", "of product", "GiB")


def wait(device: torch.device) -> None:
    """For all that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(work: Callable[[], Any], device: torch.device, least: float) -> float:
    """Seconds of a piece of work that is repeated for so long, after two rounds of warm-up."""
    work()
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    at_once = 1 if time.perf_counter() - started > 0.3 else 10  # between two waits
    started, rounds = time.perf_counter(), 0
    while rounds == 0 or time.perf_counter() - started < least:
        for _ in range(at_once):
            work()
        rounds += at_once
        wait(device)
    return (time.perf_counter() - started) / rounds


def product(device: torch.device, side: int, least: float) -> float:
    """FLOP/s of one bfloat16 product of square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in "ab")
    return float(2 * side**3 / seconds_each(lambda: a @ b, device, least))


def measure(
    make: Callable[[int], Callable[[], Any]], batch: int, device: torch.device, least: float
) -> tuple[int, float, float]:
    """(samples at once, seconds of a round, GiB at most); fewer samples where memory does not suffice."""
    while True:
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            took = seconds_each(make(batch), device, least)
            most = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
            return batch, took, most
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2


def row(
    found: tuple[int, float, float], tokens: int, flop: float | None, rates: Mapping[str, float | None]
) -> dict[str, float | int | None]:
    """A line of the table.

    Args:
        tokens: of an image.
        flop: of an image; None: not counted.
    """
    batch, took, most = found
    per_second = batch / took
    done = None if flop is None else flop * per_second
    shares = {name: done / rate if done and rate else None for name, rate in rates.items()}
    values = {"batch": batch, "images/s": per_second, "tokens/s": per_second * tokens, "TFLOP/s": done and done / 1e12}
    return values | shares | {"GiB": None if most != most else most}


def read(choice: str, batch: int) -> dict[str, Any]:
    """A recipe's tree, with another batch size."""
    tree = read_yaml(find_recipe(choice, preset="", name=""))
    tree["train"] |= {"batch_size": batch, "accumulate": 1}
    return dict(tree)


def tokenizer_rows(name: str, choice: str, batch: int, others: int, table: "Table") -> None:
    """Training and tokenizing."""
    tree = read(choice, batch)
    kind = method_class(str(tree["method"]))
    recipe = kind.settled(check(kind.recipe_model, tree, choice, kind.families, resolve))
    with on_meta() as meta:
        planned = kind(recipe, None, meta)
    flop = train_tokenizer._compute(recipe, planned, None)[0].flop / batch
    method = kind(recipe, None, table.device)
    tokens = int(torch.tensor(method.tokenizer.grid(recipe.data.size)).prod())

    def training(samples: int) -> Callable[[], Any]:
        smaller = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": samples})})
        return train_tokenizer.trial(method, smaller, table.device)(samples)

    table.add(f"train {name}", training, batch, tokens, flop)
    network, size = method.tokenizer.eval(), recipe.data.size
    with on_meta():
        encoding = compute.encoding(planned.tokenizer, resolved(recipe)["quantizer"], size)

    def tokenizing(samples: int) -> Callable[[], Any]:
        images = torch.rand(samples, 3, size, size, device=table.device)
        return lambda: network.encode(images)

    table.add(f"tokenize {name}", tokenizing, others, tokens, encoding)


def proposal_rows(name: str, choice: str, batch: int, batches: tuple[int, ...], table: "Table") -> None:
    """Training and sampling, the latter as `tok sample` does by default, and in bfloat16."""
    recipe = check(train_proposal.ProposalRecipe, read(choice, batch), choice, train_proposal.FAMILIES)
    expected = recipe.expects.planned()
    sizes = (expected["codebook_size"] or 64, expected["grid"] or (4, 4), expected["classes"] or 10)
    with on_meta():
        planned = build.build_proposal(resolved(recipe), *sizes)
    step = train_proposal._trial(recipe, *sizes, table.device)
    table.add(f"train {name}", step, batch, planned.tokens, planned.flops())
    del step
    network = build.build_proposal(resolved(recipe), *sizes).to(table.device).eval()
    sampling = Sampling()
    for precision in ("float32", "bfloat16"):  # where bfloat16 is emulated, the facts say so
        network.to_precision(precision)
        for number in batches:

            def drawing(samples: int) -> Callable[[], Any]:
                seeds = torch.arange(samples, device=table.device)
                return lambda: network.generate(seeds % sizes[2], seeds, sampling)

            flop = network.drawing(sampling, network.tokens).flop
            table.add(f"sample {name}, {precision}, {number}", drawing, number, network.tokens, flop)


class Table:
    """Rows measured on a device."""

    def __init__(self, device: torch.device, least: float, side: int) -> None:
        self.device, self.least = device, least
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type
        peak = next((1e12 * value for part, value in PEAKS.items() if part in name), None)
        self.rates = {"of peak": peak, "of product": product(device, side, least / 2)}
        self.facts = {
            "device": name,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "tok": __version__,
            "threads": torch.get_num_threads(),
            "bfloat16": emulated_bfloat16(device) or "has instructions",
            "peak": peak,
            "product": self.rates["of product"],
        }
        self.rows: dict[str, dict[str, float | int | None]] = {}

    def add(
        self, name: str, make: Callable[[int], Callable[[], Any]], batch: int, tokens: int, flop: float | None
    ) -> None:
        """Measure a row, as training does: in TF32 where a recipe says float32."""
        with tensor_cores():
            self.rows[name] = row(measure(make, batch, self.device, self.least), tokens, flop, self.rates)
        print(line(name, self.rows[name]), file=sys.stderr, flush=True)


def number(value: float | int | None, column: str) -> str:
    """A cell."""
    if value is None:
        return "-"
    if column.startswith("of "):
        return f"{value:.1%}"
    return str(value) if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def line(name: str, values: Mapping[str, float | int | None]) -> str:
    """A row as text."""
    return f"{name:<34}" + "".join(f"{number(values[column], column):>12}" for column in COLUMNS)


def text(found: Mapping[str, Any]) -> str:
    """A table as text."""
    head = ", ".join(
        f"{key} {value}" for key, value in found["facts"].items() if key in ("device", "torch", "cuda", "tok")
    )
    title = f"{'':<34}" + "".join(f"{column:>12}" for column in COLUMNS)
    told = ["These are toy sizes: the figures say nothing."] if found["toy"] else []
    return "\n".join([head, *told, title, *(line(name, values) for name, values in found["rows"].items())])


def compared(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Images per second of two tables, and how many times the first is the second."""
    lines = [f"{'images/s':<34}{a['facts']['device'][:24]:>26}{b['facts']['device'][:24]:>26}{'ratio':>10}"]
    for name in [name for name in a["rows"] if name in b["rows"]]:
        one, two = (table["rows"][name] for table in (a, b))
        other = "" if one["batch"] == two["batch"] else f"  batches of {one['batch']} and {two['batch']}"
        rates = one["images/s"], two["images/s"]
        lines.append(f"{name:<34}{rates[0]:>26,.1f}{rates[1]:>26,.1f}{rates[1] / rates[0]:>10.2f}{other}")
    return "\n".join(lines)


def main() -> None:
    """Measure, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row, at least")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="JSON")
    args = parser.parse_args()
    if args.compare:
        print(compared(*(json.loads(path.read_text()) for path in args.compare)))
        return
    cuda = torch.cuda.is_available()
    if not cuda and not args.toy:
        raise TokError("gpu_table.py", "there is no CUDA device", next="Add --toy to try it on the CPU")
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    table = Table(device, args.seconds, 256 if args.toy else 8192)
    for name, (recipe, toy, batch) in TOKENIZERS.items():
        tokenizer_rows(
            name, toy if args.toy else recipe, TOY if args.toy else batch, TOY if args.toy else TOKENIZING, table
        )
    for name, (recipe, toy, batch) in PROPOSALS.items():
        batches = TOY_BATCHES if args.toy else BATCHES
        proposal_rows(name, toy if args.toy else recipe, TOY if args.toy else batch, batches, table)
    found = {"facts": table.facts, "toy": args.toy, "rows": table.rows}
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(text(found))


if __name__ == "__main__":
    try:
        main()
    except TokError as error:
        sys.exit(str(error))
