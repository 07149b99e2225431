"""Commands beside the pipeline: import checkpoints, inspect artifacts and recipes."""

from pathlib import Path
from typing import Any

import click

from tokcli import terminal
from tokcli.cli.flags import COMMON, NAME, PATH, flag, options_of, run_stage, switch, with_options
from tokcli.errors import Misuse


@click.command(short_help="facts, lineage and metrics of artifacts")
@click.argument("artifact", required=False, type=PATH)
@flag(
    "--workspace", "Folder whose artifacts are listed.", "DIR", PATH, envvar="TOK_WORKSPACE", default=Path("artifacts")
)
@switch("--json as_json", "Print the manifest as JSON.")
def show(artifact: Path | None, workspace: Path, as_json: bool) -> None:
    """Show one artifact, or list the artifacts of the workspace."""
    from tokcli.stages import show as stage

    if artifact is None:
        click.echo(stage.listing(workspace, as_json))
    elif as_json:
        click.echo(terminal.as_json(stage.manifest(artifact)))
    else:
        click.echo(stage.describe(artifact))


@click.command(short_help="list, show, check and explain recipes")
@click.argument("name", required=False, type=NAME)
@switch("--check", "Check the named recipe, or all of them, against the code.")
@switch("--explain", "Explain a section, a component or a key; without NAME, list what there is.")
def recipes(name: str | None, check: bool, explain: bool) -> None:
    """List the recipes that come with tok, or show one; its header says command, cost and score.

    tok recipes --explain quantizer.vq prints the keys of that component: type, range, default and meaning;
    quantizer.decay one key, quantizer the names of all components of that section.
    """
    from tokcli.cli import recipes as stage

    if check and explain:
        raise Misuse("--explain", "does not go with --check", next="Leave one of them out")
    if explain:
        click.echo(stage.explanation(name))
    else:
        click.echo(stage.check(name) if check else stage.text(name) if name else stage.listing())


@click.command(short_help="check the hashes of an artifact")
@click.argument("artifact", type=PATH)
def verify(artifact: Path) -> None:
    """Recompute the SHA-256 of every file of an artifact, and its id."""
    from tokcli.stages import show as stage

    click.echo(stage.verify(artifact))


@click.command("import", short_help="published checkpoint -> tokenizer")
@click.argument("kind", metavar="FORMAT")
@click.argument("file", type=PATH)
@flag(
    "--data",
    "Images that the tokenizer was trained on; later commands read them. Default: imagenet/train.",
    "SET/SPLIT|DIR|TAR",
    str,
)
@with_options(COMMON)
def import_tokenizer(kind: str, file: Path, as_json: bool, **flags: Any) -> None:
    """Turn a published checkpoint (.ckpt, .pt, .bin or .safetensors) into a tokenizer.

    FORMAT is taming-vqgan-f16-1024, taming-vqgan-f16-16384, maskgit-vqgan-f16-1024, llamagen-vq16, beit2-vqkd-clip or
    beit2-vqkd-dino. No code in the file is run.
    """
    from tokcli.stages import import_tokenizer as stage

    run_stage(lambda o: stage.main(o, kind=kind, file=file), options_of(flags), as_json)


COMMANDS = [import_tokenizer, show, recipes, verify]
