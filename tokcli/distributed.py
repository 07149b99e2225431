"""Ranks and collectives. Without torchrun (or SLURM) every function is that of a single process."""

import contextlib
import datetime
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from tokcli.errors import TokError

log = logging.getLogger("tok")
FAILED = "a rank has failed"  # key of the ranks' store
GRACE = 3.0  # seconds that a rank has left when another one has failed
FOREVER = datetime.timedelta(days=28)
UNSET = "Unset it, or start the command with torchrun, which sets it"
_store: dist.Store | None = None
_all: Any = None  # the group by which ranks that are done wait for the others, however long these take


def _environment(name: str, slurm: str, least: int) -> int:
    """A number that torchrun or SLURM has set; the least that it can be where neither has.

    Raises:
        TokError: something else stands there.
    """
    # SLURM's variables are also set in a plain `srun` shell of one task, so they count only beside a rendezvous address.
    names = [name, slurm] if "MASTER_ADDR" in os.environ else [name]
    found = next((one for one in names if os.environ.get(one)), None)
    if found is None:
        return least
    text = os.environ[found]
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise TokError(found, f"is no whole number from {least} on", got=text, next=UNSET)
    return int(text)


def rank() -> int:
    """This process's number in [0, world_size).

    Raises:
        TokError: it is not; a process that takes itself for another's would leave its work to nobody.
    """
    number, world = _environment("RANK", "SLURM_PROCID", 0), world_size()
    if number >= world:
        raise TokError("RANK", f"is not below WORLD_SIZE, which is {world}", got=str(number), next=UNSET)
    return number


def world_size() -> int:
    """How many processes run this command together (1 without torchrun)."""
    return _environment("WORLD_SIZE", "SLURM_NTASKS", 1)


def local_rank() -> int:
    """This process's number on its machine, which is also the index of its GPU."""
    return _environment("LOCAL_RANK", "SLURM_LOCALID", 0)


def local_world_size() -> int:
    """How many of torchrun's processes share this machine. SLURM binds each of its tasks to cores of its own, so these count as 1."""
    return _environment("LOCAL_WORLD_SIZE", "", 1)


def is_main() -> bool:
    """Whether this is the one process that writes files and talks to the terminal."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the process group if there is more than one process: gloo between CPUs, NCCL between GPUs, where gloo carries what no
    GPU should be waited for.

    Raises:
        TokError: the processes do not find each other.
    """
    global _store, _all
    if world_size() == 1 or dist.is_initialized():
        return
    try:
        opened, *_ = next(dist.rendezvous("env://", rank(), world_size()))
    except (ValueError, RuntimeError) as error:  # a variable that is missing or no number; nobody at that address
        raise TokError(
            "torchrun",
            f"the {world_size()} ranks that WORLD_SIZE promises do not find each other",
            why=str(error).splitlines()[0][:160],
            next="Start them with torchrun or srun, with MASTER_ADDR and MASTER_PORT of the first one's machine",
        ) from None
    # torchrun's agent keeps one store for all attempts, with the addresses of ranks that died. Machines count attempts each for
    # itself, so that several cannot agree on a name by the count.
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"
    _store = dist.PrefixStore(f"attempt {attempt}", opened)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = datetime.timedelta(minutes=30)
    dist.init_process_group(backend, store=_store, rank=rank(), world_size=world_size(), timeout=patience)
    _all = dist.new_group(backend="gloo", timeout=FOREVER)
    barrier()  # a rank that ended now, before the others have reached it, would leave them in a half-made group


def stop() -> None:
    """Leave the process group, if one was joined."""
    global _store, _all
    if dist.is_initialized():
        dist.destroy_process_group()
    _store = _all = None


def _wait_for_all() -> None:
    """Wait until all ranks are done, which a signal may end. torchrun gives the ranks of other machines five minutes after those of the
    machine that holds its store have ended, and then fails where they still work.
    """
    if _all is not None:
        work = dist.all_reduce(torch.zeros(1), group=_all, async_op=True)
        while not work.is_completed():
            time.sleep(0.1)
        work.wait()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """The process group around a command. What ends one rank is said once, and ends the others without a word of their own; who is
    done waits for the others.

    Raises:
        TokError: of this rank, where no other has said the same; or another rank was lost without saying why.
        SystemExit: another rank has said why.
    """
    try:
        start(device)
        yield
        _wait_for_all()
    except BaseException as error:
        if _store is not None:
            _leave(error)
        raise
    finally:
        stop()


def _leave(error: BaseException) -> None:
    """Tell the others of this rank's end, or raise what stands for theirs."""
    if _lost(error):
        if _told(FAILED):
            raise SystemExit(1) from None
        error = TokError(
            "torchrun",
            "another rank is gone without a word: it was killed, or its machine is out of reach",
            next="Look at the memory of its machine, and repeat the command: it resumes from the last state",
        )
    _tell(FAILED)
    if isinstance(error, TokError) and not first_to_say(str(error)):
        raise SystemExit(error.exit_code) from None
    raise error from None


def _lost(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other side is gone."""
    said = str(error).lower()
    return isinstance(error, RuntimeError) and ("gloo" in said or "nccl" in said or "connection" in said)


def _tell(key: str) -> int:
    """How many ranks have told the same, this one included; 1 where nobody can be reached."""
    with contextlib.suppress(RuntimeError):
        return _store.add(key, 1) if _store is not None else 1
    return 1


def _told(key: str) -> bool:
    with contextlib.suppress(RuntimeError):
        return _store is not None and bool(_store.check([key]))
    return False


def first_to_say(text: str) -> bool:
    """Whether no other rank has said this."""
    return _tell(f"said {hashlib.sha256(text.encode(errors='replace')).hexdigest()}") == 1


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """End this process soon after another rank has failed, also where it waits for that rank in a collective of a GPU, which hears
    of no lost connection.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            if _told(FAILED):
                if not done.wait(GRACE):
                    os._exit(1)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if active() and _store is not None:
        watcher.start()
    try:
        yield
    finally:
        done.set()
        if watcher.is_alive():
            watcher.join()


def active() -> bool:
    """Whether collectives are needed: a group was joined and has more than one member."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def barrier() -> None:
    """Wait for all ranks."""
    any_rank(False)


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
    """Whether the flag is set on at least one rank: how ranks agree to stop at the same step. No GPU is waited for."""
    return bool(all_reduce_sum(torch.tensor(float(flag))).item() > 0)


def means(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers, by name, as their means over ranks, which all call it with the same names."""
    own = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
    return dict(zip(values, (all_reduce_sum(own) / world_size()).tolist(), strict=True))


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
