"""Two gloo ranks train what one process trains on the same batches; one spawn for all tests."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rank_trainings import ADAPTIVE, SHARDED, STEPS, TRAININGS, UNREVIVED, proposal_training, settings
from test_faults import logged
from torch import Tensor, nn

from tokcli import distributed
from tokcli.command.options import Options
from tokcli.command.session import begin
from tokcli.errors import Interrupted, TokError
from tokcli.training import loop
from tokcli.training.parallel import own

State = dict[str, Tensor]


def train(folder: Path, name: str, after: Callable[[int], None] = lambda number: None, **keys: Any) -> State:
    """Weights, codebook and averages at the end."""
    folder.mkdir(exist_ok=True)
    updater, batches, step, others = (TRAININGS | UNREVIVED | ADAPTIVE | SHARDED)[name](settings(**keys))

    def stopping(number: int, batch: Any) -> dict[str, Any]:
        values = step(number, batch)
        after(number)
        return values

    loop.run(folder, updater.train, 0, batches=batches.from_step, step=stopping, parts={"updater": updater, **others})
    with updater.whole():
        states = {k: v.clone() for k, v in updater.module.state_dict().items()}
    with updater.weights():
        averages = {f"average of {k}": v.detach().clone() for k, v in updater.module.named_parameters()}
    return states | averages | {k: v for each in others.values() for k, v in each.state_dict()["module"].items()}


def signal_to_rank_1(number: int) -> None:
    if distributed.rank() == 1 and number == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def interrupted(folder: Path, name: str, after: Callable[[int], None] = signal_to_rank_1, **keys: Any) -> str:
    try:
        train(folder, name, after, **keys)
    except Interrupted as error:
        return str(error)
    return "not interrupted"


def poisoned(folder: Path) -> str:
    """Train with a teacher that is not finite for one image, which rank 1 sees in the third step."""
    unfold = nn.functional.unfold

    def spoil(*args: Any, **keys: Any) -> Tensor:
        spoil.calls += 1  # type: ignore[attr-defined]
        return unfold(*args, **keys) * (torch.nan if distributed.rank() == 1 and spoil.calls == 3 else 1)  # type: ignore[attr-defined]

    spoil.calls = 0  # type: ignore[attr-defined]
    nn.functional.unfold = spoil
    try:
        train(folder, "tokenizer")
    except TokError as error:
        return str(error)
    finally:
        nn.functional.unfold = unfold
    return "not stopped"


def refused(folder: Path) -> str:
    """Ask for an output folder that holds something else."""
    try:
        begin(Options(out=folder), "tokenizer", "any", {"stage": "tokenizer"}, {}, torch.device("cpu"))
    except TokError as error:
        return str(error)
    except SystemExit as error:
        return f"exit {error.code}"
    return "not refused"


def without_all_reduce(folder: Path) -> State:
    reduce = distributed.all_reduce_sum
    distributed.all_reduce_sum = lambda t: t  # the classic bug: each rank's codebook learns from its own part
    try:
        return train(folder, "unrevived")
    finally:
        distributed.all_reduce_sum = reduce


def rank_main(rank: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    folder = Path(root)
    results: dict[str, Any] = {}
    for name in TRAININGS:
        results[name] = train(folder / name, name)
        results[f"{name} in micro-batches"] = train(folder / f"{name}-micro", name, accumulate=2)
        results[f"{name} interrupted"] = interrupted(folder / f"{name}-interrupted", name)
    for name in TRAININGS | ADAPTIVE | SHARDED:
        results[f"{name} sharded"] = train(folder / f"{name}-sharded", name, parallel="fsdp")
    for name in TRAININGS:
        results[f"{name} sharded, in micro-batches"] = train(
            folder / f"{name}-sharded-micro", name, parallel="fsdp", accumulate=2
        )
        results[f"{name} sharded, interrupted"] = interrupted(folder / f"{name}-parts", name, parallel="fsdp")
    results["adaptive"] = train(folder / "adaptive", "adaptive")
    results["unrevived"] = train(folder / "unrevived", "unrevived")
    results["broken"] = without_all_reduce(folder / "broken")
    results["tokenizer poisoned"] = poisoned(folder / "poisoned")
    results["refused"] = refused(folder / "tokenizer")
    results["memory"] = {
        parallel: memory(folder / f"memory-{parallel}", parallel=parallel, precision="bfloat16")
        for parallel in ("ddp", "fsdp")
    }
    dist.destroy_process_group()
    from_two_to_one_to_two(folder, rank, results)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def from_two_to_one_to_two(folder: Path, rank: int, results: dict[str, Any]) -> None:
    """Trainings that two ranks stopped go on as one process for a step, and then as two ranks again."""
    if rank == 0:
        os.environ["WORLD_SIZE"] = "1"
        for name in TRAININGS:
            interrupted(
                folder / f"{name}-parts", name, lambda number: os.kill(os.getpid(), signal.SIGTERM), parallel="fsdp"
            )
        os.environ["WORLD_SIZE"] = "2"
    dist.init_process_group("gloo", init_method=f"file://{folder}/again", rank=rank, world_size=2)
    for name in TRAININGS:
        results[f"{name} sharded, 2 -> 1 -> 2"] = train(folder / f"{name}-parts", name, parallel="fsdp")


def memory(folder: Path, **keys: Any) -> dict[str, int]:
    """What a rank keeps after a step of a proposal network."""
    folder.mkdir(exist_ok=True)
    updater, batches, step, _ = proposal_training(settings(**keys))
    step(0, next(batches.from_step(0)))
    assert all(own(p).dtype == torch.float32 for p in updater.parallel.module.parameters())
    return updater.memory()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, args=(str(folder),), nprocs=2)
    yield folder


@pytest.fixture(scope="module")
def ranks(root: Path) -> list[dict[str, Any]]:
    return [torch.load(root / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    return {name: train(tmp_path_factory.mktemp("alone"), name) for name in TRAININGS | UNREVIVED | ADAPTIVE | SHARDED}


def assert_close(a: State, b: State, near: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=near, rtol=near)


def precision(name: str) -> float:
    """Muon rounds to bfloat16 what ranks sum up in another order: 0.4 % of steps of 1e-2."""
    return 2e-4 if name == "muon" else 1e-5


@pytest.mark.parametrize("how", ["", " in micro-batches"])
@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_equal_one_process_on_the_same_batches(
    ranks: list[dict[str, Any]], alone: dict[str, State], name: str, how: str
) -> None:
    assert_close(ranks[0][name + how], alone[name], precision(name))


@pytest.mark.parametrize("name", [*TRAININGS, *ADAPTIVE, *SHARDED])
def test_two_ranks_that_each_keep_a_part_equal_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, State], name: str
) -> None:
    for rank in ranks:
        assert_close(rank[f"{name} sharded"], alone[name], precision(name))


@pytest.mark.parametrize("name", TRAININGS)
def test_micro_batches_of_parts_equal_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, State], name: str
) -> None:
    assert_close(ranks[0][f"{name} sharded, in micro-batches"], alone[name], precision(name))


@pytest.mark.parametrize("name", TRAININGS)
def test_parts_go_on_as_a_whole_and_as_parts_again(
    root: Path, ranks: list[dict[str, Any]], alone: dict[str, State], name: str
) -> None:
    assert ranks[0][f"{name} sharded, interrupted"].split(": ")[1].startswith("interrupted after step 3 of 5")
    assert_close(ranks[0][f"{name} sharded, 2 -> 1 -> 2"], alone[name], precision(name))
    written = [path.name for path in (root / f"{name}-parts").glob("state*")]
    assert sorted(written) == ["state-00000005.parts", "state.pt"]  # older parts are gone


def test_each_rank_keeps_its_part_in_float32(ranks: list[dict[str, Any]]) -> None:
    whole, parts = (ranks[0]["memory"][parallel] for parallel in ("ddp", "fsdp"))
    both = {name: sum(each["memory"]["fsdp"][name] for each in ranks) for name in whole}
    assert all(whole[name] > 10_000 for name in whole)
    assert both == pytest.approx(whole, rel=0.01)  # a step counter of each parameter is on every rank
    assert parts == pytest.approx({name: size / 2 for name, size in whole.items()}, rel=0.03)  # odd rows


def test_two_ranks_weigh_an_adversary_as_one_process_does(ranks: list[dict[str, Any]], alone: dict[str, State]) -> None:
    assert_close(ranks[0]["adaptive"], alone["adaptive"])
    key = "tokenizer.pixel_decoder.layers.0.weight"
    assert (alone["adaptive"][key] - alone["adversarial"][key]).abs().max() > 1e-4  # the weight was at work


@pytest.mark.parametrize("name", TRAININGS)
def test_both_ranks_end_with_the_same_bits(ranks: list[dict[str, Any]], name: str) -> None:
    assert all(torch.equal(ranks[0][name][key], ranks[1][name][key]) for key in ranks[0][name])


def test_the_comparison_covers_a_codebook_that_learns(alone: dict[str, State], tmp_path: Path) -> None:
    key = "tokenizer.quantizer.codebook"
    early = train(tmp_path, "tokenizer", steps=1)[key]
    assert (alone["tokenizer"][key] - early).abs().max() > 0.1


def test_without_the_all_reduce_codebooks_differ(ranks: list[dict[str, Any]], alone: dict[str, State]) -> None:
    key = "tokenizer.quantizer.codebook"
    broken = [each["broken"][key] for each in ranks]
    assert_close(ranks[0]["unrevived"], alone["unrevived"])
    assert (broken[0] - broken[1]).abs().max() > 1e-2
    assert (broken[0] - alone["unrevived"][key]).abs().max() > 1e-2


@pytest.mark.parametrize("name", TRAININGS)
def test_a_signal_to_one_rank_stops_both_and_one_process_goes_on(
    root: Path, ranks: list[dict[str, Any]], alone: dict[str, State], name: str
) -> None:
    folder = root / f"{name}-interrupted"
    stopped = f"{folder}: interrupted after step 3 of 5, state saved. Repeat the command to go on."
    assert [each[f"{name} interrupted"] for each in ranks] == [stopped] * 2
    assert_close(train(folder, name), alone[name], precision(name))


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(ranks: list[dict[str, Any]]) -> None:
    assert all(each["tokenizer poisoned"].startswith("step 3: loss or gradient is not finite") for each in ranks)


def test_ranks_stop_together_when_the_folder_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert "is not empty and not an artifact" in ranks[0]["refused"]
    assert ranks[1]["refused"] == "exit 1"


def losses(folder: Path) -> list[dict[str, float]]:
    kept = ("step", "loss", "gradient_norm", "feature_loss")
    return [{name: line[name] for name in line if name in kept} for line in logged(folder)]


@pytest.mark.parametrize("how", ["", "-sharded", "-sharded-micro"])
@pytest.mark.parametrize("name", TRAININGS)
def test_the_log_is_that_of_one_process(
    root: Path, alone: dict[str, State], tmp_path: Path, name: str, how: str
) -> None:
    train(tmp_path, name)
    ours, theirs = losses(root / f"{name}{how}"), losses(tmp_path)
    assert len(ours) == STEPS  # one rank writes it
    near = 0.01 if name == "muon" else 1e-4
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=near)  # rank 0's own loss differs by 1 % and more
