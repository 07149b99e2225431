"""Time the samplers: AR with cache, without, and Hugging Face's `generate`; NAR beside them.

    OMP_WAIT_POLICY=passive python scripts/bench_sampling.py [--bf16] [--full]

6 layers of width 384, 256 tokens, 1,024 codes, random weights, one thread. `transformers` is compared where it
is installed, on the very same weights: its greedy tokens must equal ours. Medians of --repeats after a warm-up.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn

from tokcli.proposals import Proposal, Sampling
from tokcli.proposals.ar import AutoregressiveProposal
from tokcli.proposals.nar import MaskedProposal

CODES, CLASSES, GRID, WIDTH, DEPTH, HEADS, MLP = 1024, 10, (16, 16), 384, 6, 6, 1024


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall times after one warm-up each; taken in turns, so that other load meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def report(name: str, batch: int, dtype: str, took: float) -> None:
    """One line of the table."""
    rate = batch * GRID[0] * GRID[1] / took
    print(f"{name:34} {batch:5} {dtype:8} {took:8.2f} s {rate:9.0f} tokens/s", flush=True)


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """(labels, seeds)."""
    return torch.arange(batch) % CLASSES, torch.arange(batch)


def hugging_face(ours: AutoregressiveProposal) -> nn.Module | None:
    """`transformers`' Llama with our weights, or None where it is not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    vocabulary = CODES + CLASSES + 1
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    state = {"model.embed_tokens.weight": ours.embedding.weight, "lm_head.weight": ours.head.weight}
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


def generate_theirs(model: nn.Module, labels: Tensor, *, sample: bool) -> Tensor:
    """Hugging Face's `generate` on the class tokens, static or dynamic cache as it defaults to."""
    prompt = CODES + labels[:, None]
    tokens = GRID[0] * GRID[1]
    out = model.generate(  # type: ignore[operator]
        prompt, attention_mask=torch.ones_like(prompt), do_sample=sample, max_new_tokens=tokens
    )
    return out[:, 1:]


def nar_overhead(nar: MaskedProposal, batch: int) -> float:
    """Share of the time of one `generate` that is not spent in the network."""
    inside = 0.0

    def timed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Tensor) -> Tensor:
            nonlocal inside
            start = time.perf_counter()
            out = function(*args)
            inside += time.perf_counter() - start
            return out

        return run

    originals = nar._features, nar._logits
    nar._features, nar._logits = timed(nar._features), timed(nar._logits)  # type: ignore[method-assign]
    start = time.perf_counter()
    nar.generate(*inputs(batch), Sampling(steps=8))
    total = time.perf_counter() - start
    nar._features, nar._logits = originals  # type: ignore[method-assign]
    return 1 - inside / total


def bench(
    ar: Proposal, nar: Proposal, theirs: nn.Module | None, batch: int, dtype: str, repeats: int
) -> None:  # fmt: skip
    """Time what is given at one batch size."""
    labels, seeds = inputs(batch)

    def ours(network: Proposal) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            return network.generate(labels, seeds)

    runs: dict[str, Callable[[], object]] = {"AR, cache": lambda: ours(ar)}
    if theirs is not None:
        runs["AR, Hugging Face generate"] = lambda: generate_theirs(theirs, labels, sample=True)
    runs["NAR, 8 steps"] = lambda: ours(nar)
    for name, took in medians(runs, repeats).items():
        report(name, batch, dtype, took)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--bf16", action="store_true", help="also in bfloat16: our autocast, their weights")
    parser.add_argument("--full", action="store_true", help="also the cache-less path at batch 16 (minutes)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, 1 thread, cpu")
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS}
    ar = AutoregressiveProposal(CODES, GRID, CLASSES, mlp_width=MLP, **sizes).eval()
    nar = MaskedProposal(CODES, GRID, CLASSES, mlp_width=3 * MLP // 2, **sizes).eval()  # not gated: 2 matrices, not 3
    for head in (ar.head, nar.head):
        nn.init.normal_(head.weight.data[:CODES], std=0.1)  # class rows stay 0: never the greedy choice of theirs
    theirs = hugging_face(ar)
    if theirs is None:
        print("transformers is not installed: no comparison with Hugging Face")
    else:
        import transformers

        labels, seeds = inputs(4)
        equal = torch.equal(
            generate_theirs(theirs, labels, sample=False), ar.generate(labels, seeds, Sampling(temperature=0))
        )
        print(f"transformers {transformers.__version__}: greedy tokens equal ours: {equal}")
    for batch in (1, 16):
        bench(ar, nar, theirs, batch, "float32", args.repeats)
        if batch == 1 or args.full:
            labels, seeds = inputs(batch)
            start = time.perf_counter()
            slow = ar.generate_uncached(labels, seeds, Sampling())
            report("AR, no cache (one run)", batch, "float32", time.perf_counter() - start)
            print(f"{'':34} equal tokens: {torch.equal(slow, ar.generate(labels, seeds))}")
        print(f"NAR, outside the network{batch:16} float32  {100 * nar_overhead(nar, batch):8.1f} %")
    if args.bf16:
        theirs = theirs and theirs.bfloat16()
        for batch in (1, 16):
            bench(ar, nar, theirs, batch, "bf16", args.repeats)


if __name__ == "__main__":
    main()
