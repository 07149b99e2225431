"""Two gloo ranks learn the codebook that one process learns from the joint batch; one spawn for all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tokcli import distributed
from tokcli.quantizers import Quantizer
from tokcli.quantizers.ibq import IBQ
from tokcli.quantizers.lfq import LFQ
from tokcli.quantizers.simvq import SimVQ
from tokcli.quantizers.vq import VQ

KEYS: dict[str, dict[str, Any]] = {
    "cosine-ema": {"rescue": "revive", "rescue_after": 2},
    "euclidean-ema": {"metric": "euclidean", "rescue": "revive", "rescue_after": 2},
    "euclidean-gradient": {"metric": "euclidean", "learning": "gradient", "rescue": "revive", "rescue_after": 2},
    "anchors": {"metric": "euclidean", "learning": "gradient", "init": "uniform", "rescue": "anchors"},
    "kmeans-again": {"metric": "euclidean", "rescue": "kmeans", "rescue_after": 2, "rescue_below": 0.99},
    "never-revived": {"metric": "euclidean", "init": "uniform"},
}
STEPS = 6
Split = Callable[[Tensor], Tensor]


def batch(step: int) -> Tensor:
    return torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(step))  # 5 images: ranks hold 3 and 2


def learn(keys: dict[str, Any], split: Split) -> dict[str, Tensor]:
    """Codebook after the start and after some steps, health, and how many codes were revived or started again.

    The features over -0.5 in their first channel are those that count.
    """
    decay = 0.8 if keys.get("learning", "ema") == "ema" else None
    vq = VQ(codebook_size=12, code_dim=4, decay=decay, **keys)
    counted = lambda z: z[..., 0] > -0.5  # noqa: E731
    vq.initialise(split(batch(0)), counted(split(batch(0))))
    start, revived = vq.codebook.detach().clone(), 0
    with torch.no_grad():
        vq.codebook[:3] = torch.tensor([[50.0], [60.0], [70.0]]) * torch.ones(4)  # codes to revive
    vq.restart_training_state()
    for step in range(STEPS):
        z = split(batch(step))
        if not vq.initialised:
            revived += 1
            vq.initialise(z, counted(z))
        vq(z, counted(z))
        vq.after_step(step)
        revived += int((vq.age_steps == 0).sum()) if vq.rescue == "revive" else 0
    health = torch.tensor([*vq.health().values()])
    return {"start": start, "end": vq.codebook.detach(), "health": health, "revived": torch.tensor(revived)}


def gradients(quantizer: Quantizer, split: Split) -> dict[str, Tensor]:
    """What a linear layer before the quantizer and the quantizer itself learn from, averaged over ranks as DDP does."""
    z = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    sum(quantizer(split(layer(z))).losses.values()).backward()  # type: ignore[union-attr]
    named = {**dict(layer.named_parameters()), **dict(quantizer.named_parameters())}
    return {
        name: distributed.all_reduce_sum(p.grad.clone()) / distributed.world_size()
        for name, p in named.items()
        if p.grad is not None
    }


LEARNT: dict[str, Callable[[], Quantizer]] = {
    "lfq": lambda: LFQ(code_dim=4, entropy=1.0),
    "lfq, joint bits": lambda: LFQ(code_dim=4, entropy=1.0, joint_bits=4),
    "simvq": lambda: SimVQ(codebook_size=12, code_dim=4),
    "ibq": lambda: IBQ(codebook_size=12, code_dim=4, entropy=1.0),
}


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    splits: dict[str, Split] = {"shared": lambda z: z[rank::2], "empty": lambda z: z if rank == 0 else z[:0]}
    results = {f"{name} {split}": learn(KEYS[name], splits[split]) for name in KEYS for split in splits}
    results |= {name: gradients(make(), splits["shared"]) for name, make in LEARNT.items()}
    reduce = distributed.all_reduce_sum
    distributed.all_reduce_sum = lambda t: t  # the classic bug: every rank learns from its own part
    results["cosine-ema broken"] = learn({}, splits["shared"])
    distributed.all_reduce_sum = reduce
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, dict[str, Tensor]]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, args=(str(folder),), nprocs=2)
    yield [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("split", ["shared", "empty"])
@pytest.mark.parametrize("name", KEYS)
def test_both_ranks_hold_the_same_codebook(ranks: list[Any], name: str, split: str) -> None:
    for key in ("start", "end", "health"):
        assert torch.equal(ranks[0][f"{name} {split}"][key], ranks[1][f"{name} {split}"][key])


@pytest.mark.parametrize("split", ["shared", "empty"])
@pytest.mark.parametrize("name", KEYS)
def test_two_ranks_equal_one_process_on_the_joint_batch(ranks: list[Any], name: str, split: str) -> None:
    alone = learn(KEYS[name], lambda z: z)
    for key in alone:
        torch.testing.assert_close(ranks[0][f"{name} {split}"][key], alone[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LEARNT)
def test_gradients_of_two_ranks_average_to_those_of_the_joint_batch(ranks: list[Any], name: str) -> None:
    alone = gradients(LEARNT[name](), lambda z: z)
    assert alone and all(g.abs().max() > 1e-4 for g in alone.values())
    torch.testing.assert_close(ranks[0][name], alone, atol=1e-6, rtol=1e-4)


def test_the_comparison_covers_anchors() -> None:
    moved = learn(KEYS["anchors"], lambda z: z)
    assert (moved["end"][:3].abs().max(1).values < 40).all()  # the codes that were put far away


@pytest.mark.parametrize(
    ("name", "times"), [("cosine-ema", 2), ("euclidean-ema", 2), ("euclidean-gradient", 2), ("kmeans-again", 1)]
)
def test_the_comparison_covers_rescue(name: str, times: int) -> None:
    assert learn(KEYS[name], lambda z: z)["revived"] >= times


def test_without_the_all_reduce_ranks_drift_apart(ranks: list[Any]) -> None:
    broken = [r["cosine-ema broken"]["end"] for r in ranks]
    assert (broken[0] - broken[1]).abs().max() > 1e-2
