"""Files of weights as inputs: whatever a training reads of pretrained networks is named by its contents, and recorded.

Another file is another artifact, be it given by a flag, fetched from a hub or found in a package; the same bytes are the same
wherever they lie and whatever they are called.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokcli.build import WEIGHTS_FLAGS
from tokcli.command.options import Options
from tokcli.errors import TokError
from tokcli.losses.perceptual import lpips_file
from tokcli.measure.extractors import expanded
from tokcli.pretrained import network_file
from tokcli.pretrained.published_weights import weights_entry
from tokcli.pretrained.teacher import teacher_file
from tokcli.pretrained.text import tower_files
from tokcli.proposals.gpt2 import language_file

READERS = {  # of files of weights
    "teacher": "a teacher, or a tokenizer that has one as its encoder",
    "vgg": "network vgg16 (--set loss.perceptual.network=vgg16, of tok eval --set eval.lpips=true)",
    "inception": "extractor inception (tok eval --set 'eval.extractors=[inception]', of a training 'train.eval_extractors')",
    "text": "a network that reads captions by a tower, or tok eval with --set eval.clip_score=true",
    "language": "a network that starts from a language model (--set proposal.name=gpt2)",
}
UNKNOWN = "weights-unknown"  # id of files that a plan has not looked for


class _Read(NamedTuple):
    """What a recipe of training reads.

    Args:
        role: among the inputs, after `weights-`.
        flags: names in `Options.weights` of which it reads one.
        files: from `Options.weights` to the files, looked for where none is given.
    """

    role: str
    flags: tuple[str, ...]
    files: Callable[[Mapping[str, Path]], list[Path]]


def _teacher(name: str, role: str = "teacher") -> _Read:
    def files(given: Mapping[str, Path]) -> list[Path]:
        return [network_file(name, teacher_file(given, name), role=role, flag="--teacher-weights")]

    return _Read(role, ("teacher", f"teacher:{name}"), files)


def _network(role: str, called: str, name: str) -> _Read:
    """A network that a loss or a discriminator is made of."""
    flag = WEIGHTS_FLAGS.get(name)
    option = "--vgg-weights" if flag == "vgg" else None

    def files(given: Mapping[str, Path]) -> list[Path]:
        found = [network_file(name, given.get(flag or ""), role=called, flag=option)]
        return found + ([lpips_file()] if name == "vgg16" and called == "perceptual loss" else [])

    return _Read(role, (flag,) if flag else (), files)


def _judge(name: str) -> _Read:
    """An extractor by which a training measures: the artifact holds its numbers."""
    flag = "inception" if name == "inception" else None

    def files(given: Mapping[str, Path]) -> list[Path]:
        option = "--inception-weights" if flag else None
        return [network_file(name, given.get(flag or ""), role="extractor", flag=option)]

    return _Read(f"extractor-{name}", (flag,) if flag else (), files)


def _of(recipe: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section, empty where there is none."""
    section = recipe.get(key)
    return section if isinstance(section, Mapping) else {}


def _read(recipe: Mapping[str, Any]) -> Iterator[_Read]:
    """What a recipe of training reads, each role once; that of a foreign artifact may hold anything."""
    teacher, tower = _of(recipe, "teacher").get("name"), _of(recipe, "condition").get("tower")
    language, judge = _of(recipe, "proposal").get("language"), _of(_of(recipe, "gan"), "discriminator")
    objective, encoder = _of(recipe, "objective"), _of(recipe, "encoder")
    pixels = objective.get("pixels") != 0
    if teacher is not None and objective.get("features") != 0:
        yield _teacher(str(teacher))
    named = _of(recipe, "train").get("eval_extractors")
    for name in expanded([name for name in named if isinstance(name, str)]) if isinstance(named, list) else []:
        yield _judge(name)
    if "network" in encoder:
        yield _teacher(str(encoder["network"]), "encoder")
    for term, section in _of(recipe, "loss").items():
        if pixels and isinstance(section, Mapping) and "network" in section:
            yield _network(term, "perceptual loss", str(section["network"]))
    if pixels and "network" in judge:
        yield _network("discriminator", "discriminator", str(judge["network"]))
    if tower is not None:
        yield _Read("text", ("text",), lambda weights: tower_files(tower, weights.get("text")))
    if language is not None:
        yield _Read("language", ("language",), lambda weights: [language_file(language, weights.get("language"))])


def weights_read(recipe: Mapping[str, Any]) -> set[str]:
    """Which files given by flags the networks of a checked recipe of training read, by their names in `Options.weights`."""
    return {flag for one in _read(recipe) for flag in one.flags}


def _entry(one: _Read, given: Mapping[str, Path], planned: bool) -> dict[str, str]:
    if planned and not any(flag in given for flag in one.flags):
        return {"id": UNKNOWN, "path": ""}
    return weights_entry(one.files(given))


def weights_inputs(
    recipe: Mapping[str, Any], given: Mapping[str, Path], *, planned: bool = False, unread: Collection[str] = ()
) -> dict[str, dict[str, str]]:
    """The inputs `weights-ROLE` of a training, each file hashed once and again only when it changes.

    Args:
        recipe: checked and resolved.
        given: `Options.weights`.
        planned: for a dry run, which reads no weights but those that are given.
        unread: roles whose files are not read all the same.

    Raises:
        TokError: weights are found nowhere, or cannot be read.
    """
    return {f"weights-{one.role}": _entry(one, given, planned) for one in _read(recipe) if one.role not in unread}


def network_input(name: str, *, planned: bool = False) -> dict[str, str]:
    """The input that an extractor is, which is found without a flag; arguments and errors as above."""
    extractor = _Read("extractor", (), lambda _: [network_file(name, None, role="extractor", flag=None)])
    return _entry(extractor, {}, planned)


def check_weights(options: Options, read: Collection[str]) -> None:
    """Refuse a file of weights that nothing reads, before its numbers are taken for another network's.

    Args:
        read: which of the names in `Options.weights` this command reads.

    Raises:
        TokError: another was given.
    """
    for name, file in options.weights.items():
        role, _, of = name.partition(":")
        if name not in read:
            hint = f"Leave it out, or use what reads it: {READERS[role]}"
            raise TokError(f"--{role}-weights {of and f'{of}='}{file}", "nothing here reads it", next=hint)
