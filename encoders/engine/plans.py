"""What makes an engine plan the right one: its recipe, the key of all that it depends on, and the directory that keeps it.

A plan is compiled code for one GPU, so it is disposable: built where it runs, kept under a key made of its ingredients, never
of its bytes (two builds of one model differ), and loaded only if its sha256 is the one beside it. That finds a damaged or a
truncated file; it proves no origin, so only the worker's own user may write to the directory. Knows no TensorRT.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = [
    "PROFILES",
    "EngineOptions",
    "PlanCache",
    "PlanRefused",
    "Precision",
    "Recipe",
    "Source",
    "default_cache",
    "ingredients",
    "key_of",
]

Precision = Literal["fp16", "bf16", "int8", "fp32"]
PROFILES = ((1, 8), (8, 64), (64, 512), (512, 2048))
KEY_DIGITS = 32
MAX_SIDECAR = 1 << 16


class PlanRefused(ValueError):
    """A kept plan is not the one its sidecar describes; the text gives both values."""


@dataclass(frozen=True)
class Recipe:
    """How a graph becomes a plan.

    precision: fp16 and bf16: convolutions whose weights the file stores as float16 compute in it, all else in float32; int8 and
    fp32: the types that stand in the file. profiles: lowest and highest batch of each, tuned for the highest. ranges: of other
    open dimensions, by their name in the file: lowest, usual, highest. tf32: the float32 parts may round what they multiply to
    10 bits. level: of the builder's search, 0 to 5.
    """

    precision: Precision = "fp16"
    profiles: tuple[tuple[int, int], ...] = PROFILES
    ranges: tuple[tuple[str, int, int, int], ...] = ()
    tf32: bool = False
    level: int = 3

    def __post_init__(self) -> None:
        if not self.profiles or any(not 1 <= low <= high for low, high in self.profiles):
            raise ValueError(f"profiles: pairs of a lowest and a highest batch from 1 on expected, got {self.profiles}")


@dataclass(frozen=True)
class EngineOptions:
    """What whoever runs an artifact chooses. Of TensorRT: where plans are kept (None: the user's cache directory), and the
    precision. On the CPU: the precision, and whether threads and batches are found by trying."""

    cache: Path | None = None
    precision: Precision = "fp16"
    cpu_precision: Literal["fp32", "int8"] = "fp32"
    calibrate: bool = False


class Source(NamedTuple):
    """A graph. name: sha256 of its file, or what it is derived from; graph: makes it, asked only where a plan is built."""

    name: str
    graph: Callable[[], bytes]


def ingredients(source: str, recipe: Recipe, library: str, sm: str, driver: str) -> dict[str, Any]:
    """All that a plan depends on. source: a Source's name; library: name and version, e.g. "tensorrt 11.4.0"; sm: "9.0";
    driver: "580.159.03".
    """
    return {
        "onnx": source,
        "precision": recipe.precision,
        "profiles": [list(p) for p in recipe.profiles],
        "ranges": [list(r) for r in recipe.ranges],
        "tf32": recipe.tf32,
        "level": recipe.level,
        "library": library,
        "sm": sm,
        "driver": driver,
    }


def key_of(parts: Mapping[str, Any]) -> str:
    """32 hex digits of the sha256 of the ingredients, in one order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:KEY_DIGITS]


def default_cache() -> Path:
    """$XDG_CACHE_HOME/ecg-stream-worker/engines, or under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ecg-stream-worker" / "engines"


class PlanCache:
    """KEY.plan and, beside it, KEY.json: the ingredients, the plan's size and its sha256."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def path(self, parts: Mapping[str, Any]) -> Path:
        """Where the plan of these ingredients is or would be."""
        return self.directory / f"{key_of(parts)}.plan"

    def load(self, parts: Mapping[str, Any]) -> bytes | None:
        """The plan, or None where none is kept. Raises PlanRefused when plan, sidecar and ingredients do not agree."""
        path = self.path(parts)
        try:
            with path.with_suffix(".json").open("rb") as file:
                told = json.loads(file.read(MAX_SIDECAR))
            plan = path.read_bytes()
        except FileNotFoundError as error:
            if path.exists():
                raise PlanRefused(f"{path.name}: {Path(error.filename).name} expected beside it, not found") from None
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise PlanRefused(f"{path.name}: cannot be read with its sidecar ({type(error).__name__}: {error})") from None
        if not isinstance(told, dict) or told.get("ingredients") != dict(parts):
            raise PlanRefused(f"{path.with_suffix('.json').name}: other ingredients than those that the key was made of")
        if told.get("bytes") != len(plan):
            raise PlanRefused(f"{path.name}: {told.get('bytes')} bytes expected, found {len(plan)}")
        if (found := hashlib.sha256(plan).hexdigest()) != told.get("sha256"):
            raise PlanRefused(f"{path.name}: sha256 {told.get('sha256')} expected, found {found}")
        return plan

    def try_to_write(self) -> None:
        """Raises OSError where a plan could not be kept: better known before a build than after it."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=self.directory):
            pass

    def store(self, parts: Mapping[str, Any], plan: bytes) -> Path:
        """Plan and sidecar, each in one step, the plan first: half of a pair is refused. Raises OSError."""
        path = self.path(parts)
        sidecar = {"ingredients": dict(parts), "bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(path, plan)
        _replace(path.with_suffix(".json"), (json.dumps(sidecar, indent=1) + "\n").encode())
        return path

    def drop(self, parts: Mapping[str, Any]) -> None:
        """Forget the plan of these ingredients, if it can be."""
        for path in (self.path(parts), self.path(parts).with_suffix(".json")):
            with contextlib.suppress(OSError):
                path.unlink()


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
