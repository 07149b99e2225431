"""A command's session: device, threads, reading processes, ranks, limits of the process."""

import contextlib
import resource
from collections.abc import Iterator

import torch

from tokcli import distributed
from tokcli.artifact.draft import removed_if_refused
from tokcli.command.options import Options
from tokcli.data import reading
from tokcli.device import precision
from tokcli.errors import Misuse, TokError

MANY_FILES = 65536  # open at once


def device_of(options: Options) -> torch.device:
    """The device to run on: `--device`, else this rank's GPU, else the CPU.

    Raises:
        TokError: an unknown device, or a GPU where there is none.
    """
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TokError(f"--device {name}", "no such device", next="Choose cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TokError(f"--device {name}", "no CUDA device is available", next="Use --device cpu")
        device = torch.device("cuda", distributed.local_rank() if device.index is None else device.index)
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise TokError(f"--device {name}", f"there are {count} CUDA devices", next=f"Choose a number below {count}")
        torch.cuda.set_device(device)
    elif device.type != "cpu":  # float64, which draws are made in, is not to be had everywhere
        raise TokError(f"--device {name}", "this device is not supported", next="Choose cpu, cuda or cuda:N")
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
        raise Misuse("--shard-index", "torchrun's ranks share the work already", next="Use one of the two")
    return share or (distributed.rank(), distributed.world_size())


@contextlib.contextmanager
def session(options: Options) -> Iterator[torch.device]:
    """Threads, reading processes, device and process group of one command, in float32 proper but where `tensor_cores` says otherwise."""
    if options.threads:
        torch.set_num_threads(options.threads)
    _allow_many_files()
    device = device_of(options)
    with (
        distributed.joined(device),
        precision.float32_proper(),
        reading.processes(options.workers),
        removed_if_refused(),
    ):
        yield device
