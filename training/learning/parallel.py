"""Processes that train together, as `torchrun` starts them: gloo between CPUs, nccl between GPUs. Alone, everything is a no-op.

Each process embeds its share of a batch; the embeddings of all are gathered and every process computes the same loss of the
whole batch. Its gradient therefore is that of one process with the same batch, whatever the objective looks at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["ParallelError", "World", "joined", "pick_device"]


class ParallelError(ValueError):
    """A device or a number of processes that this run cannot use; the text names the key and the remedy."""


class _Gather(torch.autograd.Function):
    """(B / n, ...) -> (B, ...), rows in the order of processes; see `World.gather` for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size = rank, size
        parts = [torch.empty_like(x) for _ in range(size)]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].chunk(ctx.size)[ctx.rank] * ctx.size, None, None


@dataclass(frozen=True)
class World:
    """This process among `size` that train together; rank 0 alone writes and speaks."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def gather(self, x: Tensor) -> Tensor:
        """(B / n, ...) of each process -> (B, ...), the same on all.

        The gradient is this process's rows of the gathered one, times n: every process computes the same loss, so these rows
        are complete already, and the mean over processes that follows divides by n.
        """
        if self.size == 1:
            return x
        if x.dtype == torch.bool:
            return self.gather(x.to(torch.uint8)).bool()
        out: Tensor = _Gather.apply(x.contiguous(), self.rank, self.size)
        return out

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        told = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told.item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, its gradients the mean over processes, its buffers those of rank 0. Parameters may go unused."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, static_graph=True)


def pick_device(wanted: str, amp: str) -> torch.device:
    """wanted: auto, cpu or cuda. With several processes the GPU of this one's local rank. Raises ParallelError."""
    seen = torch.cuda.device_count()
    if wanted == "cuda" and not seen:
        raise ParallelError('device: "cuda" asked for, torch sees no GPU; set device = "auto" or "cpu"')
    use = seen and wanted != "cpu"
    if amp == "bf16" and not use:
        raise ParallelError('amp: "bf16" is for GPUs; on a CPU it is slower than float32; set amp = "off"')
    if not use:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= seen:
        raise ParallelError(f"{local + 1} processes want a GPU each, torch sees {seen}; lower --nproc-per-node to {seen}")
    return torch.device("cuda", local)


@contextmanager
def joined(device: torch.device, timeout_s: float = 600.0) -> Iterator[World]:
    """The processes that torchrun started (environment RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or one alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(device=device)
        return
    from datetime import timedelta

    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout_s), device_id=device if gpu else None)
    try:
        yield World(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
