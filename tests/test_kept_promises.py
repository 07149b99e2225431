"""Small promises that nothing else would notice: each test fails when its line is broken."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tokcli
from tokcli.command.inputs import decoder_among
from tokcli.errors import TokError
from tokcli.methods.reconstruction import TokenizerLoss
from tokcli.proposals.protocol import Proposal
from tokcli.quantizers.quantizer import Quantized
from tokcli.sampling.generator import Generator
from tokcli.training.state import LOG, RATE, Journal
from tokcli.training.updater import Average

PACKAGE = Path(tokcli.__file__).parent


def test_no_two_modules_share_a_name_and_none_is_longer_than_a_page_or_two() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if file.name not in ("__init__.py", "__main__.py")]
    assert len({file.name for file in files}) == len(files)
    assert [file.name for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 350] == []


def test_every_import_from_the_package_is_of_a_module_that_is_there() -> None:
    """The type checker passes over modules that it does not find, since some requirements have no types."""
    root, gone = PACKAGE.parent, []
    for file in [file for folder in ("tokcli", "tests", "scripts") for file in (root / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokcli"):
                path = root.joinpath(*str(node.module).split("."))
                if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
                    gone.append(f"{file.name}: {node.module}")
    assert gone == []


def test_the_average_of_weights_warms_up() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    average = Average(dict(module.named_parameters()), 0.9999)
    with torch.no_grad():
        module.weight.fill_(1.0)
    average.update(0)  # (1 + 0) / (10 + 0) of the old remains
    assert torch.allclose(average.shadow["weight"], torch.tensor(0.9))
    with torch.no_grad():
        module.weight.fill_(0.0)
    average.update(90)  # 91 / 100 of it
    assert torch.allclose(average.shadow["weight"], torch.tensor(0.9 * 0.91))


def test_images_take_the_captions_in_turn() -> None:
    generator = object.__new__(Generator)
    generator.encode = lambda captions: torch.tensor([[float(len(captions[0]))]])
    generator._captions = {}
    found = generator.conditions(range(1, 6), [-1] * 6, ["a", "bb", "ccc"])
    assert found.flatten().tolist() == [2, 3, 1, 2, 3]


def test_a_journal_that_is_continued_has_one_evaluation_a_step(tmp_path: Path) -> None:
    lines = [
        {"step": 3, RATE: 1.0},
        {"step": 3, "val/x": 1.0},
        {"step": 4, RATE: 1.0},
        {"step": 4, "val/x": 1.0},
        {"step": 5, RATE: 1.0},
    ]
    (tmp_path / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal(tmp_path, 4)
    journal.write(4, {"val/x": 1.0})  # state is saved before the evaluation, which is made again
    journal.close()
    assert [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()] == lines[:4]


def test_the_share_of_labels_that_the_recipe_says_is_dropped_and_none_when_judged() -> None:
    network = Proposal(8, (2, 2), 3, label_drop=0.1)
    assert 0.08 < network.dropped(torch.arange(4000)).float().mean() < 0.12
    assert not network.eval().dropped(torch.arange(4000)).any()


def test_pixel_methods_weigh_the_codebook_as_their_losses_say() -> None:
    quantized = Quantized(
        torch.zeros(1, 4, 2),
        torch.zeros(1, 4, dtype=torch.int64),
        {"commitment": torch.tensor(0.25), "codebook": torch.tensor(1.0)},
    )
    tokenizer = torch.nn.Module()
    tokenizer.forward = lambda *_: quantized  # type: ignore[method-assign]
    tokenizer.feature_decoder = None
    tokenizer.pixel_decoder = torch.nn.Module()
    tokenizer.pixel_decoder.forward = lambda codes: codes  # type: ignore[method-assign]
    tokenizer.pixel_decoder.last_layer = None
    terms = TokenizerLoss(tokenizer, lambda *_: {"loss": torch.tensor(3.0)})(torch.zeros(1, 3, 4, 4))  # type: ignore[arg-type]
    assert terms["loss"] == 3.0 + 0.25 + 1.0 and terms["commitment"] == 0.25


def test_a_decoder_that_was_trained_for_a_tokenizer_comes_before_its_own(
    make_artifact: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = make_artifact(tmp_path / "t", facts={"has_decoder": True})
    assert decoder_among([tokenizer], tokenizer.id, "--decoder") is tokenizer
    entry = {"tokenizer": {"id": tokenizer.id, "path": str(tokenizer.path)}}
    trained = [make_artifact(tmp_path / f"d{i}", bytes([i]), kind="decoder", inputs=entry) for i in range(2)]
    assert decoder_among([tokenizer, trained[0]], tokenizer.id, "--decoder") is trained[0]
    with pytest.raises(TokError, match="2 fit"):
        decoder_among([tokenizer, *trained], tokenizer.id, "--decoder")


def test_formatting_is_switched_off_for_tables_of_tests_alone() -> None:
    files = [file for folder in ("tokcli", "scripts") for file in (PACKAGE.parent / folder).rglob("*.py")]
    assert [file.name for file in files if "fmt: skip" in file.read_text(encoding="utf-8")] == []


def test_every_default_of_a_function_is_set_by_some_caller_in_the_package() -> None:
    """What tests alone set is a constant. Functions are told apart by name: one that shares its name may be passed over."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}
    nodes = [(file, node) for file, tree in trees.items() for node in ast.walk(tree)]
    calls: dict[str, list[tuple[list[ast.expr], list[ast.keyword]]]] = {}
    for _, node in nodes:
        if isinstance(node, ast.Call):
            function, given = node.func, node.args
            if getattr(function, "id", "") == "partial" and given:
                function, given = given[0], given[1:]
            name = getattr(function, "id", getattr(function, "attr", ""))
            calls.setdefault(name, []).append((given, node.keywords))
    never = []
    for file, node in nodes:
        if not isinstance(node, ast.FunctionDef) or node.name not in calls:
            continue
        named = [a.arg for a in node.args.args if a.arg not in ("self", "cls")]
        first = len(named) - len(node.args.defaults)
        defaults = [*enumerate(named[first:], first), *(
            (len(named) + 99, a.arg) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d
        )]  # fmt: skip
        for place, name in defaults:
            set_somewhere = any(
                len(given) > place
                or any(isinstance(g, ast.Starred) for g in given)
                or any(keyword.arg in (name, None) for keyword in keywords)
                for given, keywords in calls[node.name]
            )
            if not set_somewhere:
                never.append(f"{file.name}: {node.name}({name})")
    assert never == []
