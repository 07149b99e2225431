"""The seven commands, in pipeline order."""

from pathlib import Path
from typing import Any

import click

from tokcli.cli.flags import (
    COMMON,
    DATA,
    HELD_OUT,
    INCEPTION_WEIGHTS,
    PATH,
    TEACHER_WEIGHTS,
    TEXT_WEIGHTS,
    VGG_WEIGHTS,
    WORKERS,
    flag,
    flags_of,
    options_of,
    run_stage,
    switch,
    with_options,
)
from tokcli.recipe.sample_options import SampleOptions, declared

TOKENIZER = flag("--tokenizer", "Tokenizer to use. Default: the only one in the workspace.", "DIR", PATH)
DECODER = flag("--decoder", "Decoder to use. Default: the only one in the workspace that fits.", "DIR", PATH)
SHARDS = [
    flag("--shard-index", "Index of this job, from 0, if --num-shards jobs share the work.", "I", click.IntRange(0)),
    flag("--num-shards", "Number of jobs that share the work.", "N", click.IntRange(1)),
]


@click.command("train-tokenizer", short_help="images -> tokenizer")
@flag("--teacher", "Teacher: efflite0, vits14, clip, vit, dino, mae, timm:NAME or open_clip:NAME/PRETRAINED.", "NAME")
@flag("--method", "Training method: vqkd (default), cluster, vqgan, fsq, cvq, llamagen or joint.", "NAME")
@flag("--init", "Start from the weights of another tokenizer.", "DIR", PATH)
@with_options(DATA, TEACHER_WEIGHTS, VGG_WEIGHTS, INCEPTION_WEIGHTS, COMMON)
def train_tokenizer(teacher: str | None, method: str | None, init: Path | None, as_json: bool, **flags: Any) -> None:
    """Train an image tokenizer on a teacher's features (VQ-KD, Cluster) or on pixels (VQGAN and others)."""
    from tokcli.stages import train_tokenizer as stage

    options = options_of(flags, {"teacher.name": teacher, "data.workers": flags["workers"]})
    run_stage(lambda o: stage.main(o, method=method, init=init), options, as_json)


@click.command("train-decoder", short_help="tokenizer, images -> pixel decoder")
@flag(
    "--init",
    "Start from the weights of another decoder, or of a tokenizer's own decoder, of the same size.",
    "DIR",
    PATH,
)
@flag(
    "--proposal",
    "Proposal network that draws some of the tokens, for recipes with a section `drawn`. Default: the only one in the workspace that fits.",
    "DIR",
    PATH,
)
@with_options(TOKENIZER, DATA, VGG_WEIGHTS, INCEPTION_WEIGHTS, TEXT_WEIGHTS, COMMON)
def train_decoder(
    tokenizer: Path | None, init: Path | None, proposal: Path | None, as_json: bool, **flags: Any
) -> None:
    """Train a decoder that turns the frozen codes of a tokenizer into pixels."""
    from tokcli.stages import train_decoder as stage

    options = options_of(flags, {"data.workers": flags["workers"]})
    run_stage(lambda o: stage.main(o, tokenizer=tokenizer, init=init, proposal=proposal), options, as_json)


@click.command(short_help="tokenizer, images -> token shards")
@flag("--crops", "Number of crops of each image; short for --set tokens.crops=K.", "K", click.IntRange(1))
@switch("--flip/--no-flip", "Also write the mirror image of each crop; short for --set tokens.flip=true.", default=None)
@with_options(SHARDS, TOKENIZER, DATA, COMMON)
def tokenize(
    crops: int | None,
    flip: bool | None,
    shard_index: int | None,
    num_shards: int | None,
    tokenizer: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Turn images into token shards, on which proposal networks are trained."""
    share = _share(shard_index, num_shards)  # before the seconds that importing torch takes
    from tokcli.stages import tokenize as stage

    options = options_of(flags, {"tokens.crops": crops, "tokens.flip": flip})
    run_stage(lambda o: stage.main(o, tokenizer=tokenizer, share=share), options, as_json)


@click.command("train-proposal", short_help="token shards -> proposal network")
@flag(
    "--mode", "Autoregressive or masked network. Default: as in the recipe, else ar.", type=click.Choice(["ar", "nar"])
)
@flag("--tokens", "Tokens to train on. Default: the only ones in the workspace.", "DIR", PATH)
@flag(
    "--val",
    "Tokens of held-out images; the network is measured on them at the end and every train.eval_every steps.",
    "DIR",
    PATH,
)
@flag("--init", "Start from the weights of another proposal network.", "DIR", PATH)
@flag("--language-weights", "Weights of a GPT-2, for recipes that start from one.", "FILE", PATH)
@with_options(TEXT_WEIGHTS, COMMON)
def train_proposal(
    mode: str | None, tokens: Path | None, val: Path | None, init: Path | None, as_json: bool, **flags: Any
) -> None:
    """Train a proposal network on tokens.

    The recipe's section `condition` says whether it is conditioned on classes, on captions or on nothing.
    """
    from tokcli.stages import train_proposal as stage

    run_stage(lambda o: stage.main(o, mode=mode, tokens=tokens, val=val, init=init), options_of(flags), as_json)


@click.command(short_help="proposal network, decoder -> images")
@with_options(flags_of(SampleOptions))
@flag("--mode", "Which proposal network to use if the workspace holds both.", type=click.Choice(["ar", "nar"]))
@flag("--prompts", "Captions for a text-conditional network, one per line; - reads standard input.", "FILE|-")
@flag(
    "--sweep",
    "Draw one set of samples for each value of a key of section sample, and print one path per line. Repeatable: every combination is drawn.",
    "KEY=A,B,...",
    str,
    multiple=True,
)
@flag("--edit", "Redraw part of this photo, which keeps its size; --mask or --keep-top says which part.", "IMAGE", PATH)
@flag(
    "--mask",
    "Mask of the same size as the edited photo; a masked network redraws the light parts, each in a window around it.",
    "IMAGE",
    PATH,
)
@flag("--proposal", "Proposal network to use. Default: the only one in the workspace (of that mode).", "DIR", PATH)
@with_options(DECODER, SHARDS, WORKERS, TEXT_WEIGHTS, COMMON)
def sample(shard_index: int | None, num_shards: int | None, prompts: str | None, as_json: bool, **flags: Any) -> None:
    """Generate images: draw tokens from a proposal network and decode them to pixels."""
    share = _share(shard_index, num_shards)
    shorthands = {f"sample.{key}": flags.pop(key) for key, one in declared(SampleOptions).items() if one.flags}
    if shorthands["sample.classes"] is not None and prompts is not None:
        raise click.UsageError("--classes and --prompts are for different networks.")
    if shorthands["sample.number"] is not None and shorthands["sample.per_class"] is not None:
        raise click.UsageError("-n and --per-class both say how many images.")
    from tokcli.stages import sample as stage

    inputs = {key: flags.pop(key) for key in ("mode", "proposal", "decoder", "sweep", "edit", "mask")}
    inputs |= {"share": share, "prompts": prompts}
    run_stage(lambda o: stage.main(o, **inputs), options_of(flags, shorthands), as_json)


@click.command("eval", short_help="artifacts -> metrics, the paper's table")
@click.argument("artifacts", nargs=-1, type=PATH, metavar="ARTIFACT...")
@flag(
    "--reference references",
    "What samples are compared with: real images, a published .npz, or a statistics artifact. Repeatable. Default: the held-out images.",
    "SET|DIR|TAR|NPZ|STATISTICS",
    multiple=True,
)
@with_options(HELD_OUT, INCEPTION_WEIGHTS, VGG_WEIGHTS, TEACHER_WEIGHTS, TEXT_WEIGHTS, COMMON)
def evaluate(artifacts: tuple[Path, ...], references: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Measure artifacts on held-out images and print the paper's table.

    Without ARTIFACT, all artifacts of the workspace are measured.
    """
    from tokcli.stages import evaluate as stage

    run_stage(lambda o: stage.main(o, artifacts=artifacts, references=references), options_of(flags), as_json)


@click.command("viz-codebook", short_help="tokenizer, images -> pictures of the codebook")
@flag("--against", "Another tokenizer, shown beside the first on the same images.", "DIR", PATH)
@with_options(TOKENIZER, DATA, COMMON)
def viz_codebook(tokenizer: Path | None, against: Path | None, as_json: bool, **flags: Any) -> None:
    """Show what each code means: its patches, usage, places and purity, an atlas, a map of codes and features."""
    from tokcli.stages import viz_codebook as stage

    run_stage(lambda o: stage.main(o, tokenizer=tokenizer, against=against), options_of(flags), as_json)


def _share(index: int | None, number: int | None) -> tuple[int, int] | None:
    if (index is None) != (number is None):
        raise click.UsageError("--shard-index and --num-shards go together.")
    if index is None or number is None:
        return None
    if index >= number:
        raise click.UsageError(f"--shard-index {index} must be less than --num-shards {number}.")
    return index, number


COMMANDS = [train_tokenizer, train_decoder, tokenize, train_proposal, sample, evaluate, viz_codebook]
