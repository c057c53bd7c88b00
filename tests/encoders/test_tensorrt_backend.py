"""From a graph to an encoder by way of the plan cache: kept, damaged, stale and wrong plans, a cache that is not there."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from encoders import preprocess as chain
from encoders import tensorrt_backend
from encoders.base import BackendUnavailable, Encoder, WholeEncoder
from encoders.engine.build import BuildError
from encoders.engine.cuda_calls import Gpu
from encoders.engine.plans import EngineOptions, PlanCache, Precision, Recipe, Source
from encoders.model import EcgEncoder, EncoderConfig
from encoders.signal import Layout
from encoders.tensorrt_backend import FUSED, Planner, TensorRtEncoder, open_tensorrt, recipe_of, source_of
from tests.encoders.host_gpu import HostCuda, host_tensorrt
from training.release.onnx_graph import encoder_graph

RECIPE = Recipe()


def graph(seed: int) -> bytes:
    torch.manual_seed(seed)
    return encoder_graph(EcgEncoder(EncoderConfig(dim=8)).eval())


RIGHT, WRONG = graph(0), graph(1)
SOURCE = Source("a graph", lambda: RIGHT)
WINDOW = np.random.default_rng(0).standard_normal((1, 12, 5000)).astype(np.float32)


class Workshop:
    """A machine whose builds give what `builds` says, each time the next."""

    fused_cosine = 0.999

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *builds: bytes | Exception) -> None:
        self.cuda, self.left, self.timings = HostCuda(), list(builds), list[bytes]()
        self.planner = Planner(host_tensorrt(self.cuda, Recipe(ranges=FUSED)), "9.0", "580.1", PlanCache(directory))
        monkeypatch.setattr(tensorrt_backend, "build", self._build)

    def _build(
        self, trt: Any, onnx: bytes, recipe: Recipe, sm: str | None, timings: bytes, advance: object
    ) -> tuple[bytes, bytes]:
        assert sm is None
        self.timings.append(timings)
        made = self.left.pop(0)
        if isinstance(made, Exception):
            raise made
        return made, b"timings %d" % len(self.timings)

    def open(self, check: Callable[[Encoder], None] | None = None, precision: Precision = "fp16") -> TensorRtEncoder:
        opened = open_tensorrt(self.artifact(check), EngineOptions(precision=precision), self.planner, self.cuda)
        assert isinstance(opened, TensorRtEncoder)
        return opened

    def artifact(self, check: Callable[[Encoder], None] | None = None) -> Any:
        digest = hashlib.sha256(RIGHT).hexdigest()
        files = {"encoder.onnx": SimpleNamespace(sha256=digest)}
        return SimpleNamespace(
            manifest=SimpleNamespace(files=files, tolerances=SimpleNamespace(fused_cosine=self.fused_cosine)),
            encoder_digest=digest,
            read={"encoder.onnx": RIGHT}.__getitem__,
            check_golden=check or self.golden,
        )

    def parts(self, fs_mhz: int | None = None) -> dict[str, Any]:
        return self.planner.parts(source_of(self.artifact(), "fp16", fs_mhz), recipe_of("fp16", fs_mhz))

    def golden(self, encoder: Encoder) -> None:
        engine = tensorrt_backend.Engine(self.planner.trt, RIGHT, RECIPE, self.cuda)
        expected = engine.run({"x": WINDOW})["embedding"]
        engine.close()
        if not float((encoder.encode(WINDOW) * expected).sum()) > 0.999:
            raise ValueError("golden.npz: cosine of at least 0.999 expected")

    def plan(self) -> Path:
        return self.planner.cache.path(self.parts())


def test_built_once_then_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, monkeypatch, RIGHT)
    for _ in range(2):
        with shop.open() as encoder:
            assert encoder.encode(WINDOW).shape == (1, 8)
    assert shop.left == []
    assert shop.plan().read_bytes() == RIGHT


def test_the_timing_cache_is_handed_to_the_next_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, monkeypatch, RIGHT, RIGHT)
    shop.open().close()
    shop.plan().unlink()
    shop.plan().with_suffix(".json").unlink()
    shop.open().close()
    assert shop.timings == [b"", b"timings 1"]


def test_a_damaged_plan_never_reaches_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Workshop(tmp_path, monkeypatch, RIGHT, RIGHT)
    shop.open().close()
    shop.plan().write_bytes(WRONG)  # a whole plan, of another model
    seen: list[bytes] = []
    runtime = shop.planner.trt.Runtime

    def watched(log: Any) -> Any:
        real = runtime(log)
        deserialise = real.deserialize_cuda_engine
        real.deserialize_cuda_engine = lambda plan: seen.append(plan) or deserialise(plan)
        return real

    shop.planner.trt.Runtime = watched
    shop.open(lambda encoder: None).close()
    assert seen == [RIGHT]
    assert any("sha256" in r.getMessage() and "expected, found" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("stale", [WRONG, b"\x00" * 50])
def test_a_kept_plan_that_fails_is_built_again_once(
    stale: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Workshop(tmp_path, monkeypatch, RIGHT)
    shop.planner.cache.store(shop.parts(), stale)
    with caplog.at_level(logging.WARNING), shop.open():
        pass
    assert [r.getMessage() for r in caplog.records if "the kept engine plan is built again: " in r.getMessage()]
    assert shop.plan().read_bytes() == RIGHT
    assert shop.left == []
    assert not shop.cuda.live  # the stale one gave its memory back


def test_a_fresh_plan_that_fails_too_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, monkeypatch, WRONG)
    shop.planner.cache.store(shop.parts(), WRONG)
    with pytest.raises(ValueError, match="cosine"):
        shop.open()
    assert shop.left == []


def test_a_precision_that_the_artifact_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailable, match=r"holds no encoder\.s8s8\.onnx: export it with --s8s8"):
        Workshop(tmp_path, monkeypatch).open(precision="int8")
    shop = Workshop(tmp_path, monkeypatch, RIGHT, RIGHT)
    shop.open(precision="bf16").close()
    shop.open().close()
    assert len(list(tmp_path.glob("*.plan"))) == 3  # bf16, fp16 and the timing cache


def test_a_build_that_fails_says_whose_words_these_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, monkeypatch, BuildError("Unsupported SM."))
    with pytest.raises(BackendUnavailable, match=r"tensorrt 0\.test builds no engine here: Unsupported SM\."):
        shop.open()


def test_a_cache_that_cannot_be_written_costs_the_next_start_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no directory")
    shop = Workshop(tmp_path / "file" / "engines", monkeypatch, RIGHT)
    with shop.open() as encoder:
        assert np.isfinite(encoder.encode(WINDOW)).all()
    assert [r for r in caplog.records if "the engine plan is not kept, so the next start builds it again" in r.getMessage()]


def test_a_small_gpu_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from encoders.base import DeviceLost

    shop = Workshop(tmp_path, monkeypatch, RIGHT)
    shop.cuda.limit = 100
    with pytest.raises(DeviceLost, match="no memory on the accelerator for 1 windows at once"):
        shop.open(lambda encoder: encoder.encode(WINDOW) and None)


def test_plans_of_tensorrt_rtx_outlive_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, kept in (("tensorrt", False), ("tensorrt_rtx", True)):
        trt, keys = host_tensorrt(HostCuda(), RECIPE, name), set()
        monkeypatch.setattr(tensorrt_backend, "load_library", lambda trt=trt: trt)
        for driver in ("580.1", "590.2"):
            monkeypatch.setattr(tensorrt_backend, "probe", lambda driver=driver: Gpu("a GPU", "8.9", driver))
            planner = Planner.here(tmp_path)
            keys.add(planner.cache.path(planner.parts(SOURCE, RECIPE)))
        assert (len(keys) == 1) is kept
        if kept:
            ahead = Planner.elsewhere("8.9", tmp_path)
            assert ahead.cache.path(ahead.parts(SOURCE, RECIPE)) in keys


def test_the_driver_is_asked_before_any_library_is_loaded() -> None:
    code = (
        "import sys\nfrom encoders.base import BackendUnavailable\nfrom encoders.tensorrt_backend import open_tensorrt\n"
        "from encoders.engine.plans import EngineOptions\n"
        "import encoders.engine.cuda_calls as c\nc.ctypes.CDLL = lambda name: (_ for _ in ()).throw(OSError(name))\n"
        "try: open_tensorrt(None, EngineOptions())\nexcept BackendUnavailable as error: print(error)\n"
        "print([m for m in sys.modules if 'tensorrt' in m and 'encoders' not in m or m.startswith(('torch', 'cuda'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[0].startswith("no NVIDIA driver: libcuda.so.1 is not found"), done.stderr
    assert done.stdout.splitlines()[1] == "[]"


def fused(encoder: bytes) -> bytes:
    from encoders.graph.fused import fused_graph

    return bytes(fused_graph(encoder, 250_000, planes=True).SerializeToString())


def test_counts_are_scored_on_the_gpu_where_a_plan_for_their_rate_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Equal to the step-by-step path, with labels that change; a rate without a plan, or with a wrong one, is not served."""
    shop = Workshop(tmp_path, monkeypatch, RIGHT)
    shop.planner.cache.store(shop.parts(250_000), fused(RIGHT))
    shop.planner.cache.store(shop.parts(360_000), fused(RIGHT))  # takes 2500 samples, not 3600
    with shop.open() as encoder:
        assert isinstance(encoder, WholeEncoder)
        assert encoder.serves(250_000)
        assert not encoder.serves(360_000)
        assert not encoder.serves(500_000)
        assert encoder.refused[500_000] == "no engine plan is kept for them: ecg-worker engine build --rate 500"
        assert "the plan takes no counts of shape (2, 3, 3600, 2)" in encoder.refused[360_000]
        of, rng = Layout.of(250_000, ("I", "V2"), [200.0], [3.0]), np.random.default_rng(0)
        counts = np.cumsum(rng.integers(-40, 41, (3, 2, 2500)), axis=2).astype(np.int16)
        expected = encoder.encode(chain.stack([chain.preprocess(x, of) for x in counts]))
        mix = np.stack([chain.mixing(of, (True, True))[0]] * 3)
        least = np.full((3, 1, 1), chain.FLOOR["mV"], dtype=np.float32)
        for labels in (rng.standard_normal((4, 8)).astype(np.float32), rng.standard_normal((2, 8)).astype(np.float32)):
            bias = np.arange(len(labels), dtype=np.float32)
            scored = encoder.score(250_000, counts, mix, least, labels, bias)
            assert float((scored.embedding * expected).sum(axis=1).min()) > 0.9999
            np.testing.assert_allclose(scored.logits, scored.embedding @ labels.T + bias, atol=1e-4)
            assert scored.band.shape == (3, 2, 1000)
    assert not shop.cuda.live
    said = [r.getMessage() for r in caplog.records]
    assert len([x for x in said if "are preprocessed on the CPU" in x]) == 2  # once a rate


def test_a_plan_for_a_rate_that_gives_other_embeddings_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, monkeypatch, RIGHT)
    shop.planner.cache.store(shop.parts(250_000), fused(WRONG))
    with shop.open() as encoder:
        assert not encoder.serves(250_000)
        assert "cosine" in encoder.refused[250_000]


def test_a_rate_is_held_to_the_tolerance_that_the_manifest_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, monkeypatch, RIGHT)
    shop.fused_cosine = 1.01  # of no two embeddings
    shop.planner.cache.store(shop.parts(250_000), fused(RIGHT))
    with shop.open() as encoder:
        assert not encoder.serves(250_000)
        assert "cosine of 1.01 with the step-by-step path expected" in encoder.refused[250_000]
