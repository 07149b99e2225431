"""Ranks and collectives. Without torchrun (or SLURM) every function is that of a single process."""

import datetime
import os

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def _environment(name: str, slurm: str, default: int) -> int:
    # SLURM's variables are also set in a plain `srun` shell of one task, so they count only beside a rendezvous address.
    if name in os.environ:
        return int(os.environ[name])
    if "MASTER_ADDR" in os.environ and slurm in os.environ:
        return int(os.environ[slurm])
    return default


def rank() -> int:
    """This process's number in [0, world_size)."""
    return _environment("RANK", "SLURM_PROCID", 0)


def world_size() -> int:
    """How many processes run this command together (1 without torchrun)."""
    return _environment("WORLD_SIZE", "SLURM_NTASKS", 1)


def local_rank() -> int:
    """This process's number on its machine, which is also the index of its GPU."""
    return _environment("LOCAL_RANK", "SLURM_LOCALID", 0)


def is_main() -> bool:
    """Whether this is the one process that writes files and talks to the terminal."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the process group if there is more than one process; NCCL on GPUs, gloo on CPUs."""
    if world_size() > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank(), world_size=world_size(), timeout=datetime.timedelta(minutes=30))


def stop() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def active() -> bool:
    """Whether collectives are needed: a group was joined and has more than one member."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def barrier() -> None:
    """Wait for all ranks."""
    if active():
        dist.barrier()


def all_reduce_sum(t: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Sum `t` over ranks, in place, and return it; `t` itself in a single process."""
    if active():
        dist.all_reduce(t, op=dist.ReduceOp.SUM)
    return t


def mean_over_ranks(total: Float[Tensor, " d"], count: int) -> Float[Tensor, " d"]:
    """The mean over the rows of all ranks, with a gradient that DDP's averaging makes that of one process.

    Args:
        total: sum of this rank's rows, with a gradient.
        count: how many they are.
    """
    joint = all_reduce_sum(torch.cat([total.detach(), total.new_tensor([float(count)])]))
    scaled = total * world_size() / joint[-1].clamp_min(1)
    return scaled + (joint[:-1] / joint[-1].clamp_min(1) - scaled).detach()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank: how ranks agree to stop at the same step."""
    if not active():
        return flag
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    return bool(all_reduce_sum(torch.tensor([float(flag)], device=device)).item() > 0)


def all_gather_rows(t: Shaped[Tensor, "m d"]) -> Shaped[Tensor, "total d"]:
    """Rows of all ranks in rank order; ranks may hold different numbers of rows, also none."""
    if not active():
        return t
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=t.device)
    counts[dist.get_rank()] = len(t)
    dist.all_reduce(counts)
    most = int(counts.max())
    # gather wants equal shapes: pad to the longest rank, cut again afterwards
    padded = torch.cat([t, t.new_zeros(most - len(t), t.shape[1])])
    gathered = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:count] for rows, count in zip(gathered, counts.tolist(), strict=True)])
