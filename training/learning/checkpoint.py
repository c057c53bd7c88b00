"""Checkpoints: safetensors with a JSON sidecar, both replaced atomically; never pickle.

The sidecar is written last and names the digest of the tensors, so that a crash between the two leaves the old pair readable
or is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.data.prepare import file_digest

__all__ = [
    "CheckpointError",
    "load_checkpoint",
    "optimizer_tensors",
    "restore_optimizer",
    "save_checkpoint",
    "write_whole",
    "writing",
]

KEEP = 2  # tensor files


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued, or a file that cannot be written; the text names it, where two values differ both,
    and the remedy."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises CheckpointError naming the file and the remedy where it cannot be written: a full disk, a quota, no permission."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        raise CheckpointError(
            f"{path}: cannot be written ({error}); make room or give rights there, then give the command again: `train` and "
            "`crossval` go on from the last checkpoint with --resume"
        ) from None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, flush to disk, rename. Raises CheckpointError, with the old file intact."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            write(part)
            _flush(part)
            part.replace(path)
            _flush(path.parent)
        finally:
            part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def save_checkpoint(directory: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """tensors by name and JSON-able state into `directory`. Raises CheckpointError (a full disk) with the old pair intact."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    name = f"step-{state['step']:08d}.safetensors"
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_whole(directory / name, lambda part: save_file(flat, part))
    side = {**state, "tensors": name, "sha256": file_digest(directory / name)}
    text = json.dumps(side, indent=1, ensure_ascii=False) + "\n"
    write_whole(directory / "checkpoint.json", lambda part: part.write_text(text, encoding="utf-8"))
    for old in sorted(directory.glob("step-*.safetensors"))[:-KEEP]:
        if old.name != name:
            old.unlink()


def load_checkpoint(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """-> tensors, state of the last checkpoint. Raises CheckpointError."""
    side = directory / "checkpoint.json"
    if not side.is_file():
        raise CheckpointError(f"{side}: no checkpoint; start a run with `ecg-train train --out {directory}`")
    try:
        state = json.loads(side.read_text(encoding="utf-8"))
        path, wanted = directory / Path(state["tensors"]).name, state["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{side}: no sidecar of a checkpoint ({error!r}); copy the run again, or begin anew") from None
    found = file_digest(path) if path.is_file() else "no such file"
    if found != wanted:
        raise CheckpointError(f"{path}: sha256 {wanted} expected, found {found}; copy the run again, or begin anew")
    try:
        return load_file(path), state
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {error}; copy the run again, or begin anew") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts by parameter number."""
    state = optimizer.state_dict()["state"]
    return {f"opt.{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("opt."):
            _, number, key = name.split(".", 2)
            entries.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
