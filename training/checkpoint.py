"""Checkpoints: safetensors with a JSON sidecar, both replaced atomically; never pickle.

The sidecar is written last and names the digest of the tensors, so that a crash between the two leaves the old pair readable
or is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.prepare import file_digest

__all__ = ["CheckpointError", "load_checkpoint", "optimizer_tensors", "restore_optimizer", "save_checkpoint"]

KEEP = 2  # tensor files


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued; the text names the file and both values."""


def _replace(path: Path, write: Any) -> None:
    """Write beside `path`, flush to disk, rename; a failure leaves the old file."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_checkpoint(directory: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """tensors by name and JSON-able state into `directory`. Raises OSError (a full disk) with the old checkpoint intact."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"step-{state['step']:08d}.safetensors"
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    _replace(directory / name, lambda part: save_file(flat, part))
    side = {**state, "tensors": name, "sha256": file_digest(directory / name)}
    text = json.dumps(side, indent=1, ensure_ascii=False) + "\n"
    _replace(directory / "checkpoint.json", lambda part: part.write_text(text, encoding="utf-8"))
    for old in sorted(directory.glob("step-*.safetensors"))[:-KEEP]:
        if old.name != name:
            old.unlink()


def load_checkpoint(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """-> tensors, state of the last checkpoint. Raises CheckpointError."""
    side = directory / "checkpoint.json"
    if not side.is_file():
        raise CheckpointError(f"{side}: no checkpoint; start a run with `ecg-train train --out {directory}`")
    state = json.loads(side.read_text(encoding="utf-8"))
    path = directory / state["tensors"]
    found = file_digest(path) if path.is_file() else "no such file"
    if found != state["sha256"]:
        raise CheckpointError(f"{path}: sha256 {state['sha256']} expected, found {found}")
    try:
        return load_file(path), state
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {error}") from None


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
