"""The processes of one training under torchrun, and the little that they must agree on. One process: all trivial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """Number of this process: 0 writes files, shows progress and decides."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """How many processes share each batch."""
    return dist.get_world_size() if _several() else 1


def barrier() -> None:
    """Wait for all processes."""
    if _several():
        dist.barrier()


def total(values: Sequence[float]) -> list[float]:
    """The sum over all processes of each value, in float64: the same on all of them. Every process must call it."""
    if not _several():
        return list(values)
    table = torch.tensor(list(values), dtype=torch.float64, device=_device())
    dist.all_reduce(table)
    summed: list[float] = table.tolist()
    return summed


def add_up(tensors: Sequence[torch.Tensor]) -> None:
    """Make each of `tensors` the sum over all processes, in place. Every process must call it."""
    if _several():
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


def any_of(*flags: bool) -> list[bool]:
    """For each flag whether it is true in any process. Every process must call it."""
    return [value > 0 for value in total(flags)]


def gathered(value: Any) -> list[Any]:
    """`value` of every process, in rank order, on process 0; an empty list on the others."""
    if not _several():
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


@contextmanager
def main_first() -> Iterator[None]:
    """Process 0 does the block before the others do: what it cleans up or writes, they find done."""
    if rank() > 0:
        dist.barrier()
    yield
    if _several() and rank() == 0:
        dist.barrier()


def leave() -> None:
    """End the group, so that a process that stays does not keep waiting for the others."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
