"""What every command shares: its options, its recipe, its inputs found by lineage, the folder it writes."""

import contextlib
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from tokcli import __version__, artifact, distributed, draft, planned, precision, recipe
from tokcli.artifact import Artifact
from tokcli.draft import Draft
from tokcli.errors import Misuse, TokError
from tokcli.schema import Recipe

log = logging.getLogger("tok")
R = TypeVar("R", bound=Recipe)
EMBEDDED = "openmoji/train"  # the data set of those who name none
READERS = {  # of files of weights
    "teacher": "a teacher does, or the encoder of a tokenizer that has one",
    "vgg": "network vgg16 does: --set loss.perceptual.network=vgg16, or of tok eval --set eval.lpips=true",
    "inception": "extractor inception does: --set 'eval.extractors=[inception]'",
    "text": "networks that read captions by a tower do, and tok eval with --set eval.clip_score=true",
    "language": "a network that starts from a language model does: --set proposal.name=gpt2",
}
MANY_FILES = 65536  # open at once
VERSIONS = ("torch", "torchvision", "timm", "open_clip_torch", "safetensors", "numpy", "pillow", "faiss-cpu")


@dataclass(frozen=True)
class Options:
    """The flags that say where; recipes say what."""

    workspace: Path = Path("artifacts")
    out: Path | None = None
    recipe: str | None = None
    sets: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value, from --set and the shorthands
    data: str | None = None
    labels: Path | None = None
    device: str | None = None
    threads: int | None = None
    dry_run: bool = False
    weights: Mapping[str, Path] = field(
        default_factory=dict
    )  # "teacher", "vgg", "inception", "text", "language" -> file


def device_of(options: Options) -> torch.device:
    """The device to run on: `--device`, else this rank's GPU, else the CPU.

    Raises:
        TokError: an unknown device, or a GPU where there is none.
    """
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TokError(f"--device {name}", "no such device", next="cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TokError(f"--device {name}", "no CUDA device is available", next="--device cpu")
        device = torch.device("cuda", distributed.local_rank() if device.index is None else device.index)
        if (device.index or 0) >= torch.cuda.device_count():
            raise TokError(f"--device {name}", f"there are {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)
    elif device.type != "cpu":  # float64, which draws are made in, is not to be had everywhere
        raise TokError(f"--device {name}", "this device is not supported", next="cpu, cuda or cuda:N")
    return device


def _allow_many_files() -> None:
    """Raise the limit of open files as far as the system lets us: each shard of tokens that is mapped counts as one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def share_of(share: tuple[int, int] | None) -> tuple[int, int]:
    """Which part of the shards this process writes, and of how many: as `--shard-index` says, else by rank.

    Raises:
        Misuse: both.
    """
    if share and distributed.world_size() > 1:
        raise Misuse("--shard-index", "torchrun's ranks share the work already", next="use one of the two")
    return share or (distributed.rank(), distributed.world_size())


@contextlib.contextmanager
def session(options: Options) -> Iterator[torch.device]:
    """Threads, device and process group of one command, in float32 proper but where `tensor_cores` says otherwise."""
    if options.threads:
        torch.set_num_threads(options.threads)
    _allow_many_files()
    device = device_of(options)
    distributed.start(device)
    try:
        with precision.full_precision(device):
            yield device
    finally:
        distributed.stop()


def load_recipe(
    options: Options,
    model: type[R],
    name: str,
    folder: str,
    families: Mapping[str, Mapping[str, Callable[..., Any]]],
    resolve: Callable[[str], Callable[..., Any] | None] = lambda name: None,
    say: Callable[..., None] = log.info,
) -> R:
    """The recipe of this command, overridden by its flags and checked.

    Args:
        model: the stage's recipe.
        name: default file name, such as `tokenizer-vqkd`.
        folder: the data set's folder of recipes.
        families, resolve: see `recipe.check`.
        say: is told which keys went with a component that a flag replaced.
    """
    path = recipe.find_recipe(options.recipe, folder=folder, name=name)
    tree = recipe.read_yaml(path)
    stage = model.model_fields["stage"].annotation
    wanted = getattr(stage, "__args__", ("",))[0]
    if tree.get("stage") != wanted:
        raise TokError(str(path), f"is a recipe of stage '{tree.get('stage')}'", got=f"wanted: '{wanted}'")
    recipe.override(tree, options.sets, families, resolve, say)
    return recipe.check(model, tree, str(path), families, resolve)


def method_of(options: Options, folder: str, given: str | None) -> str:
    """The tokenizer method: `--method` or `--set method=`, else that of `--recipe`, else VQ-KD.

    Raises:
        TokError: they and the recipe, whose other keys are its method's, name different ones.
    """
    said = options.sets.get("method")
    if said is not None and given not in (None, said):
        raise TokError(f"--method {given}", "is not what --set says", got=f"method={said}", next="leave one out")
    given = given if said is None else str(said)
    if options.recipe is None:
        return given or "vqkd"
    path = recipe.find_recipe(options.recipe, folder=folder, name="")
    recorded = str(recipe.read_yaml(path).get("method", given or "vqkd"))
    if given not in (None, recorded):
        raise TokError(f"--method {given}", f"is not that of {path}", got=f"method: {recorded}",
                       next=f"choose a recipe of {given}, or leave the method out")  # fmt: skip
    return recorded


def recipe_folder(spec: str) -> str:
    """The folder of recipes of a data set: `openmoji/train` -> `openmoji`; a user's own path -> `folder`."""
    head = spec.split("/")[0]
    return head if "/" not in head and (recipe.recipes_root() / head).is_dir() and not Path(spec).is_dir() else "folder"


def named_data(options: Options) -> str | None:
    """What `--data` names, if anything.

    Raises:
        TokError: `--data ""`, as a script passes whose variable is not set.
    """
    if options.data is not None and not options.data.strip():
        raise TokError("--data", "is empty", next="name a data set or a folder, or leave the flag out")
    return options.data


def data_spec(options: Options, recorded: str | None = None) -> str:
    """Which data to read: `--data`, else what the input artifact recorded, else $TOK_DATA, else the embedded set.

    Raises:
        TokError: see `named_data`.
    """
    named = named_data(options)
    if named is not None:
        return named
    for spec, origin in ((recorded, "recorded in the input"), (os.environ.get("TOK_DATA"), "from TOK_DATA")):
        if spec:
            log.info("data: %s (%s)", spec, origin)
            return spec
    log.info("data: %s (embedded; --data names your own)", EMBEDDED)
    return EMBEDDED


def check_weights(options: Options, read: Collection[str]) -> None:
    """Refuse a file of weights that nothing reads, before its numbers are taken for another network's.

    Args:
        read: which of the names in `Options.weights` this command reads.

    Raises:
        TokError: another was given.
    """
    for name, file in options.weights.items():
        if name not in read:
            hint = f"{READERS[name]}; or leave it out"
            raise TokError(f"--{name}-weights {file}", "nothing here reads it", next=hint)


def open_input(options: Options, flag: str, given: Path, kinds: Sequence[str]) -> Artifact:
    """The artifact that a flag names; in a dry run it may be the plan of one.

    Raises:
        TokError: see `artifact.open_artifact` and `planned.open_planned`.
    """
    plan = planned.open_planned(given, flag, kinds, dry_run=options.dry_run)
    return plan or artifact.open_artifact(given, flag, kinds)


def choose(
    options: Options,
    flag: str,
    given: Path | None,
    kinds: Sequence[str],
    fits: Callable[[Artifact], bool] = lambda a: True,
    maker: str = "",
) -> Artifact:
    """The input named by a flag, or the one artifact of the workspace that fits.

    Args:
        flag: such as `--tokenizer`.
        given: its value.
        kinds: the kinds of artifact it accepts.
        fits: which of them go with the other inputs.
        maker: the command that makes one, for the message.

    Raises:
        TokError: none or several fit.
    """
    if given is not None:
        return open_input(options, flag, given, kinds)
    found = [a for a in artifact.scan(options.workspace) if a.kind in kinds and fits(a)]
    if len(found) == 1:
        log.info("%s %s (the only one that fits)", flag, found[0].path)
        return found[0]
    if not found:
        raise TokError(
            flag, f"no {' or '.join(kinds)} that fits is in {options.workspace}", next=f"name one, or make it: {maker}"
        )
    listed = ", ".join(str(a.path) for a in found)
    raise TokError(flag, f"{len(found)} fit", got=listed, next=f"pick one with {flag} PATH")


def choose_decoder(options: Options, given: Path | None, tokenizer_id: str | None) -> Artifact:
    """What turns a tokenizer's codes into pixels: `--decoder`, else a decoder made for it, else the tokenizer's own.

    Raises:
        TokError: none or several decoders fit, or the tokenizer named has none.
    """
    kinds = ["decoder", "tokenizer"]
    if given is not None:
        chosen = open_input(options, "--decoder", given, kinds)
        if chosen.kind == "tokenizer" and not chosen.facts["has_decoder"]:
            raise TokError(
                f"--decoder {given}", "is a tokenizer without a pixel decoder",
                next=f"train one: tok train-decoder --tokenizer {given}",
            )  # fmt: skip
        return chosen
    of_it = [a for a in artifact.scan(options.workspace) if a.input_id("tokenizer") == tokenizer_id and a.kind in kinds]
    trained = any(a.kind == "decoder" for a in of_it)
    fits = lambda a: a in of_it and (a.kind == "decoder" if trained else a.facts["has_decoder"])  # noqa: E731
    return choose(options, "--decoder", None, kinds if not trained else ["decoder"], fits, "tok train-decoder")


def reference(a: Artifact) -> dict[str, str]:
    """An input's entry in a manifest."""
    return {"id": a.id, "path": str(a.path.resolve())}


def tokenizer_reference(a: Artifact) -> dict[str, str]:
    """The entry of the tokenizer that an artifact descends from, copied down so that lineage needs one look."""
    return reference(a) if a.kind == "tokenizer" else dict(a.inputs["tokenizer"])


def provenance(options: Options, device: torch.device, seed: int) -> dict[str, Any]:
    """Who made it how: command, versions, commit, device, threads, seed, start."""
    versions = {"tok": __version__, "python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": ["tok", *sys.argv[1:]],
        "versions": versions,
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        "threads": torch.get_num_threads(),
        "world_size": distributed.world_size(),
        "seed": seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None  # installed from a wheel
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def begin(
    options: Options,
    kind: str,
    name: str,
    resolved: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, str]],
    device: torch.device,
    *,
    exclusive: bool = True,
    wait: bool = False,
) -> Draft | Artifact:
    """Open the output folder: `--out`, or `<workspace>/<kind>-<name>-<6 hex>` of recipe and inputs; the last are `draft.begin`'s.

    With several ranks, rank 0 holds the lock and the others write nothing; all get the same answer, or all stop.
    """
    ids = {role: entry["id"] for role, entry in inputs.items()}
    tag = artifact.canonical_hash([dict(resolved), ids])[:6]
    path = options.out or options.workspace / f"{kind}-{name}-{tag}"
    facts = provenance(options, device, int(resolved.get("seed", 0)))
    answer: Draft | Artifact | None = None
    refused: TokError | None = None
    if distributed.is_main() or not exclusive:
        try:
            answer = draft.begin(path, kind, resolved, inputs, facts, exclusive=exclusive, wait=wait)
        except TokError as error:
            refused = error
    if distributed.any_rank(refused is not None):
        raise refused or SystemExit(TokError.exit_code)  # the rank that knows why says so
    if answer is None:
        manifest = artifact.read_manifest(path, f"--out {path}")
        done = manifest["status"] == "complete"
        answer = artifact.open_artifact(path) if done else Draft(path, manifest, None, resumed=True)
    if isinstance(answer, Artifact):
        log.info("%s is complete already", path)
    elif answer.resumed:
        log.info("%s was started before: resuming", path)
    return answer
