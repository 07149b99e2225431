"""A GPU is not waited for: what is not finite is found later, and nothing has changed by then. Tried on a CPU that looks later."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_trainings import SHARDED, TRAININGS, UNREVIVED, Training, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokcli.artifact.weights import read_checkpoint
from tokcli.data.randomness import seed_of
from tokcli.errors import TokError
from tokcli.stages import show
from tokcli.training import loop
from tokcli.training.finite import NonFinite

ALL = TRAININGS | UNREVIVED | SHARDED
WAITING = {"tokenizer", "gradient", "cluster"}  # codes that are rescued: which ones, the host must know
HOST = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "unique_dim", "equal")


class Asked(TorchDispatchMode):
    """Notes the operations whose result the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[1].split(".")[0]
        masked = name.startswith("index") and any(getattr(i, "dtype", None) == torch.bool for i in args[1] or ())
        if name in HOST or masked:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def later(name: str) -> Training:
    made = ALL[name](settings())
    made.updater.watch.later = True
    return made


@pytest.mark.parametrize("name", sorted(set(ALL) - WAITING))
def test_a_step_asks_nothing_of_the_device(name: str) -> None:
    made = later(name)
    batches = made.batches.from_step(0)
    for number in range(2):
        made.step(number, next(batches))
    batch = next(batches)
    with Asked() as asked:
        made.step(2, batch)
    assert (
        asked.names == [n for n in asked.names if name == "unrevived"][:1]
    )  # whether the codes are initialised: the stage asks once


def state(made: Training) -> dict[str, Tensor]:
    """All that a step changes."""
    found: dict[str, Tensor] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[prefix] = value.detach().clone()
        elif isinstance(value, dict | list | tuple):
            for key, each in value.items() if isinstance(value, dict) else enumerate(value):
                add(f"{prefix}.{key}", each)

    add("updater", made.updater.state_dict())
    add("others", {name: part.state_dict() for name, part in made.others.items()})
    return found


def poison(made: Training, wanted: int) -> Callable[[int, Any], dict[str, Any]]:
    """The training's step, with a loss that is not finite in one."""
    forward, now = made.updater.parallel.forward, -1

    def spoiled(*inputs: Tensor) -> dict[str, Tensor]:
        terms = forward(*inputs)
        return terms | ({"loss": terms["loss"] * torch.nan} if now == wanted else {})

    made.updater.parallel.forward = spoiled

    def step(number: int, batch: Any) -> dict[str, Any]:
        nonlocal now
        now = number
        return made.step(number, batch)

    return step


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("name", ALL)
def test_from_a_step_that_is_not_finite_on_nothing_changes(name: str, bad: int) -> None:
    straight, stopped = ALL[name](settings()), later(name)
    batches, step = stopped.batches.from_step(0), poison(stopped, bad)
    for number in range(4):
        step(number, next(batches))
    with pytest.raises(NonFinite) as caught:
        stopped.updater.look()
    assert caught.value.step == bad
    again = straight.batches.from_step(0)
    for number in range(bad):
        straight.step(number, next(again))
    expected, found = state(straight), state(stopped)
    for key in expected:
        if not (bad == 0 and "quantizer" in key):
            torch.testing.assert_close(found[key], expected[key], msg=key)


@pytest.mark.parametrize("name", ALL)
def test_looking_later_changes_nothing(name: str) -> None:
    found = []
    for made in (ALL[name](settings()), later(name)):
        batches = made.batches.from_step(0)
        for number in range(3):
            made.step(number, next(batches))
        made.updater.look()
        found.append(state(made))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stop_writes_what_repeats_it(tmp_path: Path, at_once: bool) -> None:
    made = ALL["proposal"](settings(log_every=5))
    made.updater.watch.later = not at_once
    with pytest.raises(TokError, match=r"^step 3: .*\(last finite at 2\)"):
        loop.run(
            tmp_path, made.updater.train, 7, batches=made.batches.from_step, step=poison(made, 2),
            parts={"updater": made.updater},
        )  # fmt: skip
    assert read_checkpoint(tmp_path / "state.pt")["step"] == 2
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    rows = list(zip(range(3), made.batches.from_step(0), strict=False))[2][1].rows.tolist()
    assert (found["step"], found["seed"], found["samples"]) == (3, 7, [rows])
    assert found["dropout_seeds"] == [seed_of(7, "dropout", 0, 2)]
    names = {name for name, p in made.updater.module.named_parameters() if p.requires_grad}
    assert found["gradient_norms"] == dict.fromkeys(names, "nan")
    said = "\n".join(show.show_evidence(tmp_path))
    assert f"samples {', '.join(map(str, rows))}" in said
    assert f"({len(names)} of {len(names)} not finite)" in said
