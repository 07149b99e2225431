"""How a network is parted among ranks: block by block, with no more than one block whole at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_trainings import DEVICE, settings

from tokcli.proposals import PROPOSALS
from tokcli.stages.train_proposal import Likelihood
from tokcli.training import parallel, sharded


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_each_block_gives_its_memory_back_before_the_next_one_is_parted(
    group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Likelihood(PROPOSALS["ar"](12, (4, 4), 3, width=16, depth=4, heads=2, mlp_width=32))
    given = {name: p for name, p in network.named_parameters()}
    before = {name: p.detach().clone() for name, p in given.items()}
    whole: list[int] = []
    shard = sharded.fully_shard

    def watched(unit: torch.nn.Module, **keys: Any) -> Any:
        whole.append(sum(p.untyped_storage().nbytes() > 0 for p in given.values()))
        return shard(unit, **keys)

    monkeypatch.setattr(sharded, "fully_shard", watched)
    shared = parallel.network_of(network, settings(parallel="fsdp"), DEVICE)
    assert len(whole) == 5 and whole == sorted(set(whole), reverse=True)  # four blocks and what is around them
    assert all(p.untyped_storage().nbytes() == 0 for p in given.values())
    with shared.whole():
        torch.testing.assert_close(dict(network.named_parameters()), before, atol=0, rtol=0)


def test_kernels_in_another_order_are_parted(group: None) -> None:
    """Pretrained convolutions come channels last, as the frozen encoder of a joint tokenizer."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 3)).to(
        memory_format=torch.channels_last
    )
    network[0].requires_grad_(False)
    before, images = {n: p.detach().clone() for n, p in network.named_parameters()}, torch.randn(2, 3, 8, 8)
    expected = network(images)
    shared = parallel.network_of(network, settings(parallel="fsdp"), DEVICE)
    found = shared.forward(images)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert [p.grad is not None for p in shared.module.parameters()] == [False, False, True, True]
    with shared.whole():
        torch.testing.assert_close(dict(network.named_parameters()), before, atol=0, rtol=0, check_stride=False)


def test_a_network_that_ranks_keep_parts_of_is_built_in_the_hosts_memory(group: None) -> None:
    gpu = torch.device("cuda", 1)
    assert parallel.built_on(settings(parallel="fsdp"), gpu).type == "cpu"
    assert parallel.built_on(settings(), gpu) == gpu
