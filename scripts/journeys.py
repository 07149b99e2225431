"""Which files of `tokcli` a reader enters to follow a command from its first line to its last.

    python scripts/journeys.py [JOURNEY ...] [--order] [--edges]

Makes artifacts at toy size from embedded images, then runs each journey in a process of its own, under a profiler:

    shards    images to token shards, `tok tokenize`
    vqkd      a training of VQ-KD of one step, `tok train-tokenizer`
    sample    autoregressive samples, `tok sample`
    eval      those samples measured, `tok eval`

It prints, of functions that ran (importing a module does not count): the files they are in; the pairs of files of which one calls the
other; the switches, which are the pairs of functions of two files of which one calls the other; functions, and lines of the files.
`--order` lists the files in the order in which they are entered, with their lines and the number of files that call them; `--edges`
the pairs of files.
"""

import argparse
import contextlib
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

TRAIN = "train-tokenizer --recipe toy/tokenizer-vqkd --data openmoji/train"
MADE = {
    "tokenizer": f"{TRAIN}",
    "decoder": "train-decoder --recipe toy/decoder-conv --tokenizer {tokenizer}",
    "tokens": "tokenize --recipe toy/tokens --tokenizer {tokenizer} --set tokens.images=32",
    "proposal": "train-proposal --recipe toy/proposal-ar --tokens {tokens}",
    "samples": "sample --recipe toy/sample-ar -n 4 --proposal {proposal} --decoder {decoder}",
}
JOURNEYS = {
    "shards": "tokenize --recipe toy/tokens --tokenizer {tokenizer} --set tokens.images=16",
    "vqkd": f"{TRAIN} --set train.steps=1 --set optim.warmup_steps=0 --set train.save_every=1",
    "sample": "sample --recipe toy/sample-ar -n 1 --proposal {proposal} --decoder {decoder}",
    "eval": "eval --recipe toy/eval {samples}",
}


class Followed:
    """The calls between functions of the package, by their code."""

    def __init__(self, package: Path) -> None:
        self.root = f"{package}{os.sep}"
        self.entered: dict[CodeType, None] = {}
        self.calls: set[tuple[CodeType, CodeType]] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call; see `sys.setprofile`."""
        code = frame.f_code
        if event != "call" or not self._counts(code):
            return
        self.entered.setdefault(code)
        above = frame.f_back
        while above is not None and not above.f_code.co_filename.startswith(self.root):
            above = above.f_back
        if above is not None and self._counts(above.f_code):
            self.calls.add((above.f_code, code))

    def _counts(self, code: CodeType) -> bool:
        """A function of the package, not the body of a module or a class."""
        return code.co_filename.startswith(self.root) and bool(code.co_flags & inspect.CO_OPTIMIZED)

    def name(self, code: CodeType) -> str:
        """The file of a function, below the package."""
        return code.co_filename.removeprefix(self.root)

    def print(self, journey: str, order: bool, edges: bool) -> None:
        """The figures of a journey."""
        files = list(dict.fromkeys(map(self.name, self.entered)))
        switches = {(a, b) for a, b in self.calls if a.co_filename != b.co_filename}
        pairs = sorted({(self.name(a), self.name(b)) for a, b in switches})
        lines = {name: Path(self.root, name).read_text(encoding="utf-8").count("\n") for name in files}
        print(
            f"{journey:<8}{len(files):>5} files{len(pairs):>6} pairs{len(switches):>6} switches"
            f"{len(self.entered):>6} functions{sum(lines.values()):>7} lines"
        )
        callers = Counter(b for _, b in pairs)
        for name in files if order else ():
            print(f"    {name:<44}{lines[name]:>5} lines{callers[name]:>4} callers")
        for caller, called in pairs if edges else ():
            print(f"    {caller} -> {called}")


def follow(words: list[str]) -> Followed:
    """Run a command in this process, every module of the package imported before."""
    import tokcli
    from tokcli.cli import cli

    for module in pkgutil.walk_packages(tokcli.__path__, "tokcli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    followed = Followed(Path(tokcli.__file__).parent)
    threading.setprofile(followed)
    sys.setprofile(followed)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            cli(words, standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return followed


def make(folder: Path) -> dict[str, str]:
    """The artifacts that the journeys start from, by kind."""
    made: dict[str, str] = {}
    for kind, command in MADE.items():
        words = [*command.format(**made).split(), "--workspace", str(folder), "--device", "cpu"]
        done = subprocess.run([sys.executable, "-m", "tokcli", *words], check=True, stdout=subprocess.PIPE, text=True)
        made[kind] = done.stdout.strip()
    return made


def main() -> None:
    """Follow what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journeys", nargs="*", metavar="JOURNEY", help=f"of {', '.join(JOURNEYS)}; default: all")
    parser.add_argument("--order", action="store_true", help="list the files in the order in which they are entered")
    parser.add_argument("--edges", action="store_true", help="list the pairs of files of which one calls the other")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the artifacts here, or take them from here")
    parser.add_argument(
        "--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS
    )  # one journey's command, in a new process
    args = parser.parse_args()
    if args.run:
        follow(args.run[1:]).print(args.run[0], args.order, args.edges)
        return
    with tempfile.TemporaryDirectory() as scratch:
        made = make(args.keep or Path(scratch))
        flags = [flag for flag, asked in (("--order", args.order), ("--edges", args.edges)) if asked]
        for journey in args.journeys or JOURNEYS:
            words = f"{JOURNEYS[journey].format(**made)} --workspace {scratch}/{journey} --device cpu".split()
            subprocess.run([sys.executable, __file__, *flags, "--run", journey, *words], check=True)


if __name__ == "__main__":
    main()
