"""Where the time of one training step of a tokenizer goes, part by part.

    python scripts/profile_step.py openmoji/tokenizer-vqgan fashion-mnist/tokenizer-vqkd ... [--steps 5] [--operators 8]

Runs the recipe's own step on random images after two steps of warm-up: the data set is not read, cached teacher features
count as read. Prints images per second of CPU time without the profiler (the machine may be busy), then each part's share of the step: the forward passes of the
networks, the rest (backward, optimizers, bookkeeping), and the operators that took longest by themselves.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import sys
import time
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from tokcli.errors import TokError
from tokcli.methods import method_class, resolve
from tokcli.recipe.check import check
from tokcli.recipe.yaml import find_recipe, read_yaml
from tokcli.stages.train_tokenizer import trial

PREFIX = "part: "


def mark(name: str, module: nn.Module) -> None:
    """Have a module's forward appear in the profile under its name."""
    running: list[Any] = []

    def enter(*_: Any) -> None:
        running.append(record_function(PREFIX + name))
        running[-1].__enter__()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(lambda *_: running.pop().__exit__(None, None, None))


def describe(choice: str, steps: int, operators: int) -> None:
    """Print the profile of one recipe."""
    path = find_recipe(choice, preset="", name="")
    tree = read_yaml(path)
    kind = method_class(str(tree["method"]))
    known = check(kind.recipe_model, tree, str(path), kind.families, resolve)
    device = torch.device("cpu")
    method = kind(known, {}, device)
    update = trial(method, known, device)(known.train.batch_size)
    for _ in range(2):
        update()
    started = time.process_time()
    for _ in range(steps):
        update()
    took = (time.process_time() - started) / steps
    for name, module in method.modules().items():
        if module is not None:
            mark(name, module)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            update()
    events = seen.key_averages()
    whole = sum(e.self_cpu_time_total for e in events)
    parts = Counter({e.key.removeprefix(PREFIX): e.cpu_time_total for e in events if e.key.startswith(PREFIX)})
    print(
        f"\n{choice}: {known.train.batch_size / took:.1f} images per CPU second, {took * 1000:.0f} ms a step of {known.train.batch_size}"
    )
    for name, microseconds in parts.most_common():
        print(f"  {name + ', forward':<34}{microseconds / whole:7.1%}")
    print(f"  {'backward, optimizers, bookkeeping':<34}{1 - parts.total() / whole:7.1%}")
    for event in sorted(events, key=lambda e: -e.self_cpu_time_total)[:operators]:
        print(f"    {event.key:<44}{event.self_cpu_time_total / whole:7.1%}  {event.count // steps:>5} a step")


def main() -> None:
    """Profile what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--operators", type=int, default=8)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}")
    for choice in args.recipes:
        describe(choice, args.steps, args.operators)


if __name__ == "__main__":
    try:
        main()
    except TokError as error:
        sys.exit(str(error))
