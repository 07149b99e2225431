"""Time the samplers: AR with cache, without, and Hugging Face's `generate`; NAR beside them; images/s end to end.

    OMP_WAIT_POLICY=passive python scripts/bench_sampling.py [--bf16] [--compile] [--side 16] [--what ar,llama,gpt2,nar,images]

6 layers of width 384, side x side tokens, 1,024 codes, random weights, one thread. `transformers` (extra `bench`) is compared: a
Llama on the very same weights, whose greedy tokens must equal ours, and a GPT-2 of equal size. Medians of --repeats after a
warm-up, of wall and of CPU time, which other load disturbs less; all are taken in turns.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn

from tokcli.data import sample_store as store
from tokcli.device import emulated_bfloat16
from tokcli.models.decoders import ConvDecoder
from tokcli.pictures import to_uint8
from tokcli.proposals import Proposal, Sampling
from tokcli.proposals.ar import AutoregressiveProposal
from tokcli.proposals.nar import MaskedProposal

CODES, CLASSES, WIDTH, DEPTH, HEADS, MLP = 1024, 10, 384, 6, 6, 1024
WHAT = ("ar", "llama", "gpt2", "nar", "images")
Times = dict[str, tuple[float, float]]


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> Times:
    """Median (wall, CPU) seconds after one warm-up each; taken in turns, so that other load meets all of them."""
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cpus: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return {name: (statistics.median(walls[name]), statistics.median(cpus[name])) for name in runs}


def report(name: str, batch: int, dtype: str, took: tuple[float, float], first: tuple[float, float]) -> None:
    """One line of the table; `first` are the times of the table's first line."""
    wall, cpu = took
    relative = f"{wall / first[0]:6.2f} {cpu / first[1]:6.2f}"
    print(f"{name:28} {batch:5} {dtype:8} {wall:8.2f} s {cpu:8.2f} s CPU   {relative} of the first", flush=True)


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """(labels, seeds)."""
    return torch.arange(batch) % CLASSES, torch.arange(batch)


def llama(ours: AutoregressiveProposal) -> nn.Module:
    """`transformers`' Llama with our weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=CODES + CLASSES + 1,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = LlamaForCausalLM(config).eval()
    assert ours.head is not None  # not tied
    state: dict[str, Any] = {"model.embed_tokens.weight": ours.embedding.weight, "lm_head.weight": ours.head.weight}
    state["model.norm.weight"] = ours.transformer.norm.weight
    for i, block in enumerate(ours.transformer.blocks):
        at, mine = f"model.layers.{i}.", {name: p.data for name, p in block.named_parameters()}
        parts = zip("qkv", mine["attention.qkv.weight"].chunk(3), strict=True)
        state |= {f"{at}self_attn.{name}_proj.weight": weight for name, weight in parts}
        state[f"{at}self_attn.o_proj.weight"] = mine["attention.out.weight"]
        state[f"{at}mlp.gate_proj.weight"], state[f"{at}mlp.up_proj.weight"] = mine["mlp.up.weight"].chunk(2)
        state[f"{at}mlp.down_proj.weight"] = mine["mlp.out.weight"]
        state[f"{at}input_layernorm.weight"] = mine["attention_norm.weight"]
        state[f"{at}post_attention_layernorm.weight"] = mine["mlp_norm.weight"]
    theirs.load_state_dict(state)
    return theirs


def gpt2() -> nn.Module:
    """`transformers`' GPT-2 of the same width, depth and number of parameters, random."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=CODES + CLASSES + 1,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        n_inner=3 * MLP // 2,
        n_positions=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def generate_theirs(model: nn.Module, labels: Tensor, tokens: int, *, sample: bool) -> Tensor:
    """Hugging Face's `generate` on the class tokens, with the cache that it defaults to."""
    prompt = CODES + labels[:, None]
    out = model.generate(  # type: ignore[operator]
        prompt, attention_mask=torch.ones_like(prompt), do_sample=sample, max_new_tokens=tokens
    )
    return out[:, 1:]


def nar_overhead(nar: MaskedProposal, batch: int) -> float:
    """Share of the CPU time of one `generate` that is not spent in the network."""
    inside = 0.0

    def timed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Tensor) -> Tensor:
            nonlocal inside
            start = time.process_time()
            out = function(*args)
            inside += time.process_time() - start
            return out

        return run

    originals = nar._features, nar._logits
    nar._features, nar._logits = timed(nar._features), timed(nar._logits)  # type: ignore[method-assign]
    start = time.process_time()
    nar.generate(*inputs(batch), Sampling(steps=8))
    total = time.process_time() - start
    nar._features, nar._logits = originals  # type: ignore[method-assign]
    return 1 - inside / total


def generate(network: Proposal, batch: int, dtype: str, compiled: bool = False) -> Tensor:
    """Our sampler."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
        return network.generate(*inputs(batch), Sampling(compile=compiled))


def end_to_end(network: Proposal, batch: int, side: int, *, overlap: bool) -> None:
    """Four batches from labels to PNGs of 8 side pixels, the pixels beside the next tokens or after them."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as background, torch.inference_mode():
        waiting: list[Future[None]] = []
        for number in range(4):
            indices = network.generate(*inputs(batch), Sampling())
            waiting.append(background.submit(_write, Path(name), number, indices, side))
            if not overlap:
                waiting[-1].result()
        for future in waiting:
            future.result()


def _write(folder: Path, number: int, indices: Tensor, side: int) -> None:
    torch.manual_seed(0)
    decoder = ConvDecoder(32, (side, side), 8 * side, widths=[128, 64, 32, 32], blocks=2, channels=192).eval()
    with torch.inference_mode():
        images = to_uint8(decoder(torch.randn(CODES, 32)[indices]))
    numbers = range(number * len(images), (number + 1) * len(images))
    store.write_batch(folder, number, numbers, indices, images, "png")


def bench(runs: dict[str, Callable[[], object]], batch: int, dtype: str, repeats: int) -> None:
    """Time what is given at one batch size."""
    found = medians(runs, repeats)
    for name, took in found.items():
        report(name, batch, dtype, took, next(iter(found.values())))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--bf16", action="store_true", help="also in bfloat16: our autocast, their weights")
    parser.add_argument(
        "--compile", action="store_true", help="also the compiled samplers; compiling is in the warm-up"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=16, help="tokens along a side")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--what", default=",".join(WHAT))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, 1 thread, cpu")
    grid, what = (args.side, args.side), args.what.split(",")
    of, wide = (CODES, grid, CLASSES), 3 * MLP // 2  # of the masked one, not gated: 2 matrices, not 3
    ar = AutoregressiveProposal(*of, width=WIDTH, depth=DEPTH, heads=HEADS, mlp_width=MLP).eval()
    nar = MaskedProposal(*of, width=WIDTH, depth=DEPTH, heads=HEADS, mlp_width=wide).eval()
    for head in (ar.head, nar.head):
        assert head is not None  # not tied
        nn.init.normal_(head.weight.data[:CODES], std=0.1)  # class rows stay 0: never the greedy choice of theirs
    peers = [name for name in ("llama", "gpt2") if name in what]
    if peers and importlib.util.find_spec("transformers") is None:
        print(f"{', '.join(peers)}: left out, since transformers is not installed (pip install 'tokcli[bench]')")
        what = [name for name in what if name not in peers]
    theirs = {name: make for name, make in (("llama", lambda: llama(ar)), ("gpt2", gpt2)) if name in what}
    built = {name: make() for name, make in theirs.items()}
    if "llama" in built:
        labels, seeds = inputs(4)
        greedy = generate_theirs(built["llama"], labels, args.side**2, sample=False)
        equal = torch.equal(greedy, ar.generate(labels, seeds, Sampling(temperature=0)))
        print(f"Hugging Face's Llama on our weights: greedy tokens equal ours: {equal}")
    if args.bf16 and (why := emulated_bfloat16(torch.device("cpu"))):
        print(f"{why}: rows of bf16 say little")
    for dtype in ("float32", "bf16") if args.bf16 else ("float32",):
        for model in built.values():
            model.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
        for batch in map(int, args.batches.split(",")):
            labels, seeds = inputs(batch)
            runs: dict[str, Callable[[], object]] = {}
            if "ar" in what:
                runs["AR, cache"] = partial(generate, ar, batch, dtype)
            for name, model in built.items():
                runs[f"Hugging Face {name}"] = partial(generate_theirs, model, labels, args.side**2, sample=True)
            if "nar" in what:
                runs["NAR, 8 steps"] = partial(generate, nar, batch, dtype)
            if args.compile:
                some = {"AR, compiled": ar, "NAR, 8 steps, compiled": nar}
                runs |= {
                    name: partial(generate, network, batch, dtype, compiled=True)
                    for name, network in some.items()
                    if network.mode in what
                }
            bench(runs, batch, dtype, args.repeats)
            if dtype == "float32" and "nar" in what:
                print(f"NAR, outside the network {batch:9} float32  {100 * nar_overhead(nar, batch):8.1f} %")
    if "images" in what:
        for network in (ar, nar):
            both: dict[str, Callable[[], object]] = {
                "pixels beside": partial(end_to_end, network, 16, args.side, overlap=True),
                "pixels after": partial(end_to_end, network, 16, args.side, overlap=False),
            }
            bench(both, 16, "float32", args.repeats)
            wall = medians({"": both["pixels beside"]}, 1)[""][0]
            print(f"{type(network).__name__}, tokens, pixels, PNG: {64 / wall:.2f} images/s")


if __name__ == "__main__":
    main()
