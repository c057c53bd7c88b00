"""A prepared data set as batches: one reader for training and evaluation, never the whole set in memory.

Order, crops, lead sets and noise of a batch are a function of (seed, epoch, batch number) alone, so that a run can be
continued in the middle of an epoch and give the same bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import safe_open

from encoders import preprocess as chain
from encoders.signal import FS, LEADS, WINDOW, lead_bits
from training.config import TrainConfig
from training.data.prepare import INDEX, MANIFEST, file_digest
from training.data.superclasses import Superclasses
from training.data.targets import assessable_from, count_evidence, label_targets
from training.folds import DEVELOPMENT
from training.learning.augment import crop, disturb, pad
from training.learning.teacher import Teacher, TeacherError
from training.vocabulary import Statement

__all__ = ["LEAD_SET_BITS", "Batch", "DataError", "DataSet", "Floats", "batches", "effective_mask"]

Floats = NDArray[np.float32]
LIMB = lead_bits(LEADS[:6])
LEAD_SET_BITS = {
    "12": lead_bits(LEADS),
    "limb6": LIMB,
    "I+II": lead_bits(("I", "II")),
    "I": lead_bits(("I",)),
    "II": lead_bits(("II",)),
    "II+V1": lead_bits(("II", "V1")),
    "II+V5": lead_bits(("II", "V5")),
}
AHEAD = 4  # batches read in advance


class DataError(ValueError):
    """A prepared data set that cannot be used; the text names the file and the remedy."""


@dataclass(frozen=True)
class Batch:
    """x: (B, 12, T). y, known: bool (B, L); only known entries count. rows: (B,) positions in the data set.

    In training with superclasses y and known are (B, L + 5), see training/data/superclasses.py.
    """

    x: Floats
    y: NDArray[np.bool_]
    known: NDArray[np.bool_]
    rows: NDArray[np.int64]


def effective_mask(mask: int, lead_set: int, unit: str) -> int:
    """The leads that serving would have if only `lead_set` of a record with leads `mask` were recorded.

    From two of I, II, III in mV the other limb leads are derived; nothing is derived where the amplitude is lost. A record with
    none of the set keeps its own leads.
    """
    kept = mask & lead_set
    if kept == 0:
        return mask
    if unit == "mV" and (kept & 0b111).bit_count() >= 2:
        kept |= mask & LIMB
    return kept


class DataSet:
    """The records of some folds. labels: L statements. mask: (N,) lead bits. digest: hex sha256 of the manifest.

    teacher: sha256 of the file that gave taught_logits (N, L), None without one.

    The files' digests are compared with the manifest's, once in a process unless a file changes. Raises DataError.
    """

    def __init__(self, directory: Path, labels: Sequence[Statement], folds: Sequence[int]) -> None:
        self.directory = directory
        self.labels = tuple(labels)
        self.manifest, self.digest = _read_manifest(directory)
        table = pq.read_table(directory / INDEX).to_pylist()
        self.index: list[dict[str, Any]] = [row for row in table if row["fold"] in set(folds)]
        if not self.index:
            raise DataError(f"{directory}: no record in folds {', '.join(map(str, folds))}; prepare more data or other folds")
        self.mask = np.array([row["mask"] for row in self.index], dtype=np.int64)
        self._files: dict[str, Any] = {}
        self.teacher: str | None = None
        self.taught_logits: Floats | None = None

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def targets(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """y, known: bool (N, L). Known: the source declares the label, and the record does not call it unknown.

        A statement that rests on amplitude is not known of a record whose amplitude is lost, though y keeps what was stated.
        """
        return label_targets(self.index, self.manifest["declared"], self.labels)

    @cached_property
    def superclasses(self) -> Superclasses:
        """The further targets of these records."""
        return Superclasses.of(self.index, self.manifest["declared"])

    @property
    def stated(self) -> NDArray[np.bool_]:
        """bool (N, L): known and true."""
        y, known = self.targets
        return np.asarray(y & known)

    @property
    def shown(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """`targets`, where a label that a record's own leads do not show is unknown of it; arrays of the caller's own."""
        y, known = self.targets
        return y.copy(), known & self.assessable(self.mask)

    def stating(self) -> DataSet:
        """The same without the records that state none of the labels."""
        return self._only(np.asarray(self.stated.any(axis=1)))

    def of_patients(self, share: float, seed: int) -> DataSet:
        """The same with this share of the patients, drawn by seed; what a smaller share holds, a larger one holds too."""
        if share == 1:
            return self
        drawn = sorted({row["patient"] for row in self.index}, key=lambda p: hashlib.sha256(f"{seed}:{p}".encode()).digest())
        kept = set(drawn[: max(1, round(share * len(drawn)))])
        return self._only(np.array([row["patient"] in kept for row in self.index]))

    @property
    def folders(self) -> NDArray[np.str_]:
        """(N,) the folder that each record was prepared from."""
        return np.array([row["source"].split("/")[0] for row in self.index])

    def for_training(self, config: TrainConfig) -> DataSet:
        """What a run of this config is fitted on. Raises DataError where `leave_source` names no folder of these records."""
        out = self
        if left := set(config.left_sources):
            there = set(self.folders.tolist())
            if not left < there:
                raise DataError(
                    f"leave_source = {config.leave_source}: some of several folders are needed, there is "
                    f"{', '.join(sorted(there))}"
                )
            out = self._only(~np.isin(self.folders, sorted(left)))
        return out.of_patients(config.train_share, config.seed)

    def _only(self, keep: NDArray[np.bool_]) -> DataSet:
        """keep: (N,)."""
        out = self._copy()
        out.index = [row for row, kept in zip(self.index, keep, strict=True) if kept]
        out.mask = self.mask[keep]
        if self.taught_logits is not None:
            out.teacher, out.taught_logits = self.teacher, self.taught_logits[keep]
        return out

    def taught(self, teacher: Teacher) -> DataSet:
        """The same with a teacher's logits. Raises TeacherError when they are of other records or labels."""
        if beyond := sorted({row["fold"] for row in self.index} - set(DEVELOPMENT)):
            raise TeacherError(f"{teacher.path}: predictions for folds 1 to 8, these records are of folds {beyond}")
        table = pq.read_table(self.directory / INDEX, columns=["fold"])["fold"].to_pylist()
        out = self._copy()
        out.index, out.mask, out.teacher = self.index, self.mask, teacher.digest
        out.taught_logits = teacher.rows_for(
            [fold for fold in table if fold in DEVELOPMENT],
            sorted({row["fold"] for row in self.index}),
            self.digest,
            [s.id for s in self.labels],
        )
        return out

    def _copy(self) -> DataSet:
        """Without records."""
        out = DataSet.__new__(DataSet)
        out.directory, out.labels, out.manifest, out._files = self.directory, self.labels, self.manifest, {}
        out.digest, out.teacher, out.taught_logits = self.digest, None, None
        return out

    def positives(self) -> NDArray[np.int64]:
        """(L,) records that state each label and whose leads show it; windows of long recordings count once a patient."""
        y, known = self.shown
        return count_evidence(y & known, self.index)

    def windows(self, rows: NDArray[np.int64]) -> Floats:
        """(B, 12, 5000) float32 of these positions."""
        out = np.empty((len(rows), len(LEADS), WINDOW), dtype=np.float32)
        for k, i in enumerate(rows):
            entry = self.index[int(i)]
            name = entry["shard"]
            if name not in self._files:
                file: Any = safe_open(self.directory / name, framework="np")
                self._files[name] = file.get_slice("x")
            out[k] = self._files[name][entry["row"]]
        return out

    def assessable(self, masks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """masks: (B,) lead bits -> bool (B, L)."""
        return assessable_from(masks, self.labels)

    def plain(self, lead_set: str = "12", batch: int = 64) -> Iterator[Batch]:
        """All records in order, whole windows, with only the leads of `lead_set` kept."""
        y, known = self.targets
        for start in range(0, len(self), batch):
            rows = np.arange(start, min(start + batch, len(self)))
            x, masks = self.kept(rows, lead_set)
            yield Batch(x, y[rows], known[rows] & self.assessable(masks), rows)

    def kept(self, rows: NDArray[np.int64], lead_set: str) -> tuple[Floats, NDArray[np.int64]]:
        """(B, 12, 5000) of these positions with only the leads of `lead_set`, and (B,) lead bits."""
        masks = self._masks(rows, [lead_set] * len(rows))
        return self.windows(rows) * _kept(masks), masks

    def _masks(self, rows: NDArray[np.int64], sets: Sequence[str]) -> NDArray[np.int64]:
        return np.array(
            [
                effective_mask(int(self.mask[i]), LEAD_SET_BITS[name], self.index[int(i)]["unit"])
                for i, name in zip(rows, sets, strict=True)
            ],
            dtype=np.int64,
        )

    def draw(self, rows: NDArray[np.int64], config: TrainConfig, whole: bool, rng: np.random.Generator) -> Batch:
        """One training batch: lead set, crop or padding, disturbances by `rng`; what the lead set does not allow is unknown."""
        n_sets = len(config.lead_sets)
        rest = (1 - config.full_share) / max(1, n_sets - 1)
        share = np.array([config.full_share] + [rest] * (n_sets - 1))
        sets = [config.lead_sets[k] for k in rng.choice(n_sets, len(rows), p=share / share.sum())]
        masks = self._masks(rows, sets)
        x, n_valid = self.windows(rows), np.array([self.index[int(i)]["n_valid"] for i in rows])
        if not whole:
            x, n_valid = crop(x, n_valid, int(config.crop_s * FS), rng)
        elif config.padding:
            n_valid = pad(x, n_valid, config.padding, rng)
        disturb(x, n_valid, config, rng)
        x *= _kept(masks)
        y, known = (a[rows] for a in self.targets)
        known = known & self.assessable(masks)
        if config.superclass_weight:
            more = self.superclasses.targets(rows, masks)
            y, known = (np.concatenate(pair, axis=1) for pair in zip((y, known), more, strict=True))
        return Batch(x, y, known, rows)


def _kept(masks: NDArray[np.int64]) -> Floats:
    """(B,) lead bits -> (B, 12, 1) ones and zeros."""
    return (masks[:, None] >> np.arange(len(LEADS)) & 1).astype(np.float32)[:, :, None]


def batches(data: DataSet, config: TrainConfig, epoch: int, first: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
    """The batches of one epoch from number `first` on, read ahead by a thread. The last incomplete batch is left out.

    part: (k, n) gives every n-th record of each batch from the k-th on, so that n processes share it.
    """
    order = np.random.default_rng([config.seed, epoch]).permutation(len(data))
    whole = epoch >= config.epochs - config.finish_epochs or int(config.crop_s * FS) >= WINDOW

    def make(number: int) -> Batch:
        rows = order[number * config.batch : (number + 1) * config.batch][part[0] :: part[1]]
        return data.draw(rows, config, whole, np.random.default_rng([config.seed, epoch, number, *part]))

    with ThreadPoolExecutor(1) as pool:
        total = len(order) // config.batch
        waiting = [pool.submit(make, n) for n in range(first, min(first + AHEAD, total))]
        for n in range(first, total):
            done = waiting.pop(0).result()
            if n + AHEAD < total:
                waiting.append(pool.submit(make, n + AHEAD))
            yield done


@lru_cache(maxsize=65536)
def _digest_of(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    return file_digest(path)


def _check_file(path: Path, entry: dict[str, Any]) -> None:
    """Raises DataError unless size and sha256 are those of the manifest."""
    if not path.is_file():
        raise DataError(f"{path}: {entry['bytes']} bytes expected, no such file; prepare again")
    stat = path.stat()
    if stat.st_size != entry["bytes"]:
        raise DataError(f"{path}: {entry['bytes']} bytes expected, found {stat.st_size}; prepare again")
    found = _digest_of(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if found != entry["sha256"]:
        raise DataError(f"{path}: sha256 {entry['sha256']} expected, found {found}; prepare again")


def _read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: no such file; make the data set with `ecg-train prepare FOLDER --out {directory}`")
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        files = manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no manifest of a data set ({error!r}); prepare again") from None
    if manifest.get("preprocess") != chain.VERSION:
        raise DataError(
            f"{path}: prepared by preprocess version {manifest.get('preprocess')}, this is {chain.VERSION}; prepare again"
        )
    for name, entry in files:
        _check_file(directory / name, entry)
    return dict(manifest), hashlib.sha256(raw).hexdigest()
