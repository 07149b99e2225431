"""What a GPU computes is what a CPU computes. Skipped without CUDA; `scripts/gpu_check.sh` runs them.

TOK_GPU_CHECK=cpu runs them on the CPU against itself, so that they are no untried code where there is no GPU.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_trainings
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rank_trainings import ADAPTIVE, SHARDED, TRAININGS, Training, settings
from test_ranks import free_port
from torch import Tensor, nn

from tokcli.data.batches import TrainBatches
from tokcli.data.transforms import TRANSFORMS
from tokcli.device import autocast, float32_proper
from tokcli.models import DECODERS, DISCRIMINATORS, ENCODERS, FeatureDecoder
from tokcli.proposals import PROPOSALS, Sampling
from tokcli.quantizers import QUANTIZERS
from tokcli.stages.train_proposal import Likelihood
from tokcli.training.parallel import network_of

DEVICE = torch.device(os.environ.get("TOK_GPU_CHECK", "cuda"))
CUDA = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CPU = torch.device("cpu")
ALL = TRAININGS | ADAPTIVE | SHARDED
NEAR = {"atol": 1e-4, "rtol": 1e-3}  # sums in another order

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit encoder": (
        lambda: ENCODERS["vit"](8, image_size=32, patch_size=8, width=32, depth=2, heads=2),
        (2, 3, 32, 32),
    ),
    "conv encoder": (
        lambda: ENCODERS["conv"](8, image_size=32, widths=[32, 64], blocks=1, channels=16),
        (2, 3, 32, 32),
    ),
    "maskgit encoder": (lambda: ENCODERS["maskgit"](8, image_size=32, widths=[32, 64], blocks=1), (2, 3, 32, 32)),
    "conv decoder": (
        lambda: DECODERS["conv"](8, (4, 4), 32, widths=[64, 64, 32, 32], blocks=1, channels=16),
        (2, 16, 8),
    ),
    "maskgit decoder": (lambda: DECODERS["maskgit"](8, (4, 4), 32, widths=[64, 64, 32, 32], blocks=1), (2, 16, 8)),
    "vit decoder": (lambda: DECODERS["vit"](8, (4, 4), 32, width=32, depth=2, heads=2), (2, 16, 8)),
    "feature decoder": (lambda: FeatureDecoder(8, 24, (4, 4), width=32, heads=2), (2, 16, 8)),
    "patch discriminator": (lambda: DISCRIMINATORS["patch"](depth=2, width=32), (2, 3, 32, 32)),
}
QUANTIZED: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 64, "code_dim": 8, "init": "uniform"},
    "vq euclidean gradient": {"codebook_size": 64, "code_dim": 8, "metric": "euclidean", "learning": "gradient", "init": "uniform"},
    "fsq": {"levels": [8, 5, 5]},
    "lfq": {"code_dim": 6},
    "simvq": {"codebook_size": 64, "code_dim": 8},
    "ibq": {"codebook_size": 64, "code_dim": 8},
}  # fmt: skip
SAMPLERS: dict[str, tuple[str, Sampling]] = {
    "ar": ("ar", Sampling()),
    "ar, guided, top-k, top-p": ("ar", Sampling(cfg_scale=2.0, top_k=8, top_p=0.9, temperature=0.8)),
    "gpt2": ("gpt2", Sampling()),
    "nar": ("nar", Sampling(steps=4)),
    "nar, guided": ("nar", Sampling(steps=4, cfg_scale=2.0)),
    "nar, halton": ("nar", Sampling(steps=4, order="halton")),
}


@contextlib.contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Trainings are made on that device."""
    before = rank_trainings.DEVICE
    rank_trainings.DEVICE = device
    try:
        yield
    finally:
        rank_trainings.DEVICE = before


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, x = make(), torch.rand(shape)
    found = []
    for device in (CPU, DEVICE):
        network, given = network.to(device), x.to(device).requires_grad_()
        network.zero_grad()
        with float32_proper():
            out = network(given)
            out.square().mean().backward()
        grads = {n: p.grad.cpu().clone() for n, p in network.named_parameters() if p.grad is not None}
        found.append([out.detach().cpu(), given.grad.cpu(), grads])
    torch.testing.assert_close(found[1], found[0], **NEAR)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantizers(name: str) -> None:
    torch.manual_seed(0)
    made = QUANTIZERS[name.split()[0]](**QUANTIZED[name])
    z = torch.randn(4, 16, made.code_dim)
    found = []
    for device in (CPU, DEVICE):
        quantizer = QUANTIZERS[name.split()[0]](**QUANTIZED[name])
        quantizer.load_state_dict(made.state_dict())
        quantizer.to(device).train()
        with float32_proper():
            out = quantizer(z.to(device))
            quantizer.after_step(0)
            codes = quantizer.codes(out.indices)
        state = {n: t.detach().cpu() for n, t in quantizer.state_dict().items()}
        found.append([*(t.detach().cpu() for t in (out.z_q, out.indices, codes)), state])
    torch.testing.assert_close(found[1], found[0], **NEAR)


def proposal(kind: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    network = PROPOSALS[kind](16, (4, 4), 3, width=32, depth=2, heads=2, mlp_width=64, dropout=0.0, **keys)
    if network.head is not None:
        nn.init.normal_(network.head.weight, std=0.2)
    return network


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str) -> None:
    kind, sampling = SAMPLERS[name]
    network, classes, seeds = proposal(kind), torch.arange(64) % 3, torch.arange(64)
    found = []
    for device in (CPU, DEVICE):
        with float32_proper():
            found.append(network.to(device).generate(classes.to(device), seeds.to(device), sampling).cpu())
    assert (found[0] == found[1]).all(1).float().mean() > 0.9  # a rounding may tip a draw, and what follows from it


@pytest.mark.parametrize("name", ALL)
def test_trainings(name: str) -> None:
    found = []
    for device in (CPU, DEVICE):
        with on(device), float32_proper():
            found.append(losses(ALL[name](settings(ema=None)), 3))
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=1e-2)


def losses(made: Training, steps: int) -> list[float]:
    batches = made.batches.from_step(0)
    values = [float(made.step(number, next(batches))["loss"]) for number in range(steps)]
    made.updater.look()
    return values


@pytest.mark.parametrize("name", ["proposal", "ar", "decoder", "tokenizer"])
def test_bfloat16(name: str) -> None:
    with on(DEVICE):
        exact, rounded = (losses(ALL[name](settings(precision=p)), 3) for p in ("float32", "bfloat16"))
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("name", ["proposal", "ar", "decoder"])
def test_compiled_steps(name: str) -> None:
    if not CUDA and name == "proposal":
        pytest.skip("a minute of C++; `ar` is of the same blocks")
    with on(DEVICE), float32_proper():
        eager, compiled = (losses(ALL[name](settings(compile=c)), 3) for c in (False, True))
    assert compiled == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_compiled_sampling(kind: str) -> None:
    network = proposal(kind).to(DEVICE)
    classes, seeds = (torch.arange(8) % 3).to(DEVICE), torch.arange(8).to(DEVICE)
    with float32_proper():
        eager, compiled = (network.generate(classes, seeds, Sampling(compile=c)) for c in (False, True))
    assert (eager == compiled).all(1).float().mean() > 0.8


@pytest.mark.skipif(not CUDA, reason="graphs are CUDA's")
@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_a_training_step_captured_as_a_graph_equals_the_eager_one(kind: str) -> None:
    """Capturing fails where anything waits for the device."""
    network = proposal(kind).to(DEVICE)
    given = [torch.randint(16, (8, 16)), torch.arange(8) % 3, torch.arange(8), torch.zeros(8)]
    given = [t.to(DEVICE) for t in given]

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        loss = network.loss(*given)["loss"]
        loss.backward()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    eager, grads = step().detach().clone(), [p.grad.clone() for p in network.parameters() if p.grad is not None]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.testing.assert_close(captured.detach(), eager)
    torch.testing.assert_close([p.grad for p in network.parameters() if p.grad is not None], grads, **NEAR)


@pytest.mark.skipif(not CUDA, reason="a CPU waits for itself")
@pytest.mark.parametrize("name", sorted(set(ALL) - {"tokenizer", "gradient", "cluster"}))
def test_a_step_waits_for_nothing(name: str) -> None:
    with on(DEVICE):
        made = ALL[name](settings())
        batches = made.batches.from_step(0)
        for number in range(2):
            made.step(number, next(batches))
        batch = next(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            made.step(2, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not CUDA, reason="only copies to GPUs are from pinned memory")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_images_are_in_pinned_memory(workers: int) -> None:
    source = rank_trainings.Photos()
    batches = TrainBatches(source, TRANSFORMS["center-crop"](16), batch_size=4, seed=0, workers=workers)
    assert next(iter(batches)).images.is_pinned()


@pytest.mark.skipif(not CUDA, reason="only copies to GPUs are from pinned memory")
def test_batches_of_tokens_are_in_pinned_memory() -> None:
    assert all(t.is_pinned() for t in next(TRAININGS["proposal"](settings()).batches.from_step(0)))


def rank_main(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    device = torch.device("cuda", rank) if CUDA else CPU
    if CUDA:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if CUDA else "gloo", rank=rank, world_size=world)
    found = {}
    with on(device), float32_proper():
        for name in ALL:
            for parallel in ("ddp", "fsdp"):
                found[name, parallel] = losses(ALL[name](settings(parallel=parallel)), 3)
        rounded = losses(ALL["ar"](settings(parallel="fsdp", precision="bfloat16")), 3)
    kept = {"losses": {f"{n} {p}": v for (n, p), v in found.items()}, "rounded": rounded}
    if CUDA:
        kept["share"] = share_at_most(device)
    if rank == 0:
        torch.save(kept, Path(folder, "found.pt"))
    dist.destroy_process_group()


def share_at_most(device: torch.device) -> float:
    """The most of a network that was on the device at a time while ranks began to keep parts of it."""
    network = Likelihood(PROPOSALS["ar"](16, (4, 4), 3, width=256, depth=8, heads=4))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    shared = network_of(network, settings(parallel="fsdp"), device)
    size = sum(p.numel() * p.element_size() for p in shared.module.parameters())
    return (torch.cuda.max_memory_allocated(device) - before) / size


def test_the_gpus_there_are_share_networks(tmp_path: Path) -> None:
    """Under NCCL: a copy on each, and a part on each. Losses are those of rank 0's samples, so that ranks' differ where there are several."""
    world = max(n for n in (1, 2, 4, 8) if n <= (torch.cuda.device_count() if CUDA else 1))
    mp.spawn(rank_main, args=(world, free_port(), str(tmp_path)), nprocs=world)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name in ALL:
        near = 0.05 if name == "muon" else 1e-3
        assert found["losses"][f"{name} fsdp"] == pytest.approx(found["losses"][f"{name} ddp"], rel=near), name
    assert found["rounded"] == pytest.approx(found["losses"]["ar fsdp"], rel=0.05)
    assert found.get("share", 0) < 1 / world + 0.25  # a part of all, and a block


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_a_loss_in_bfloat16_is_close(kind: str) -> None:
    network = proposal(kind).to(DEVICE)
    tokens = torch.randint(16, (8, 16), device=DEVICE)
    classes, seeds = (torch.arange(8) % 3).to(DEVICE), torch.arange(8).to(DEVICE)
    found = []
    for precision in ("float32", "bfloat16"):
        with torch.no_grad(), autocast(DEVICE, precision):
            found.append(float(network.eval().loss(tokens, classes, seeds)["loss"]))
    assert found[1] == pytest.approx(found[0], rel=0.05)
