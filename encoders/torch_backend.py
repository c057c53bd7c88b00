"""The reference backend: the torch model itself, from safetensors or from memory. Needs torch (extra `train`)."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from encoders.base import Floats, check_windows
from encoders.model import EcgEncoder, EncoderConfig

__all__ = ["TorchEncoder"]


class TorchEncoder:
    """An `EcgEncoder` in eval mode as an `Encoder`. digest: sha256 of the encoder.onnx that the weights belong to."""

    backend = "torch"

    def __init__(self, model: EcgEncoder, digest: str = "", threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._model: EcgEncoder | None = model.eval()
        self.dim = model.config.dim
        self.digest = digest

    @classmethod
    def from_safetensors(cls, path: Path, digest: str = "", threads: int | None = None) -> Self:
        """A file whose metadata holds the encoder's config under "config". Raises ValueError when it does not fit."""
        try:
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {}).get("config", "null"))
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if not isinstance(config, dict):
                raise ValueError(f"metadata 'config' expected, found {config!r}")
            model = EcgEncoder(EncoderConfig(**config))
            model.load_state_dict(tensors)
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{Path(path).name}: {error}") from None
        return cls(model, digest, threads)

    def encode(self, x: Floats) -> Floats:
        """x: float32 (B, 12, 5000) -> float32 (B, D), rows of norm 1."""
        check_windows(x)
        if self._model is None:
            raise RuntimeError("the encoder is closed")
        with torch.inference_mode():
            return np.asarray(self._model(torch.from_numpy(np.ascontiguousarray(x))).numpy(), dtype=np.float32)

    def close(self) -> None:
        """Release the model."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
