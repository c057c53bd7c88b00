"""A plan is loaded only under the key of everything it depends on, and only if it is what its sidecar says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from encoders.engine.plans import PlanCache, PlanRefused, Recipe, default_cache, ingredients, key_of

PARTS = ingredients("onnx", Recipe(), "tensorrt 11.4.0", "9.0", "580.159.03")


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "engines")


@pytest.mark.parametrize(
    "other",
    [
        ingredients("another", Recipe(), "tensorrt 11.4.0", "9.0", "580.159.03"),
        ingredients("onnx", Recipe(precision="bf16"), "tensorrt 11.4.0", "9.0", "580.159.03"),
        ingredients("onnx", Recipe(profiles=((1, 8), (8, 64))), "tensorrt 11.4.0", "9.0", "580.159.03"),
        ingredients("onnx", Recipe(ranges=(("L", 1, 98, 512),)), "tensorrt 11.4.0", "9.0", "580.159.03"),
        ingredients("onnx", Recipe(tf32=True), "tensorrt 11.4.0", "9.0", "580.159.03"),
        ingredients("onnx", Recipe(level=5), "tensorrt 11.4.0", "9.0", "580.159.03"),
        ingredients("onnx", Recipe(), "tensorrt 11.4.1", "9.0", "580.159.03"),
        ingredients("onnx", Recipe(), "tensorrt_rtx 11.4.0", "9.0", "580.159.03"),
        ingredients("onnx", Recipe(), "tensorrt 11.4.0", "8.9", "580.159.03"),
        ingredients("onnx", Recipe(), "tensorrt 11.4.0", "9.0", "580.159.04"),
    ],
)
def test_every_ingredient_changes_the_key(cache: PlanCache, other: dict[str, Any]) -> None:
    assert key_of(other) != key_of(PARTS)
    assert len({len(key_of(p)) for p in (PARTS, other)}) == 1
    cache.store(PARTS, b"plan")
    assert cache.load(other) is None


def test_every_field_of_a_recipe_is_an_ingredient() -> None:
    """A field that is added later and forgotten in the key would load the wrong plan."""
    fields = set(Recipe.__dataclass_fields__)
    assert fields <= set(PARTS)
    assert set(PARTS) - fields == {"onnx", "library", "sm", "driver"}


def test_kept_and_loaded(cache: PlanCache) -> None:
    assert cache.load(PARTS) is None
    path = cache.store(PARTS, b"plan one")
    assert path.name == key_of(PARTS) + ".plan"
    assert cache.load(PARTS) == b"plan one"
    cache.store(PARTS, b"plan two")  # two builds of one model differ; the key is the same
    assert cache.load(PARTS) == b"plan two"
    assert sorted(p.suffix for p in cache.directory.iterdir()) == [".json", ".plan"]
    assert cache.directory.stat().st_mode & 0o077 == 0
    cache.drop(PARTS)
    cache.drop(PARTS)
    assert cache.load(PARTS) is None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_parts(path: Path) -> None:
    told = json.loads(path.with_suffix(".json").read_text())
    told["ingredients"]["sm"] = "8.9"
    path.with_suffix(".json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip, r"sha256 [0-9a-f]{64} expected, found [0-9a-f]{64}"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "1000 bytes expected, found 997"),
        (lambda path: path.write_bytes(b""), "1000 bytes expected, found 0"),
        (lambda path: path.with_suffix(".json").unlink(), r"\.json expected beside it, not found"),
        (lambda path: path.with_suffix(".json").write_text("{"), "cannot be read with its sidecar"),
        (lambda path: path.with_suffix(".json").write_text("[" * 50_000), "cannot be read with its sidecar"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "other ingredients"),
        (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"), "cannot be read with its sidecar"),
        (other_parts, "other ingredients"),
    ],
)
def test_a_plan_that_is_not_the_one_described_is_refused(cache: PlanCache, spoil: Any, message: str) -> None:
    spoil(cache.store(PARTS, b"x" * 1000))
    with pytest.raises(PlanRefused, match=message):
        cache.load(PARTS)


def test_a_sidecar_without_a_plan_is_none(cache: PlanCache) -> None:
    cache.store(PARTS, b"plan").unlink()
    assert cache.load(PARTS) is None


def test_a_write_that_fails_leaves_nothing_behind(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        cache.store(PARTS, b"plan")
    assert list(cache.directory.iterdir()) == []


def test_where_plans_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "ecg-stream-worker" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "ecg-stream-worker" / "engines"


@pytest.mark.parametrize("profiles", [(), ((0, 8),), ((8, 4),)])
def test_profiles_that_make_no_sense(profiles: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="lowest and a highest batch"):
        replace(Recipe(), profiles=profiles)
