"""The label bank: one unit-norm row a label, with the numbers that turn a similarity into a calibrated probability.

Bytes: magic ``ECGBANK1``, uint32 LE length of the header, header (canonical JSON, utf-8), raw float32 LE (L, D). The same bytes
lie in the artifact and in Redis; their sha256 is the bank's name. Knows no file and no store.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from encoders.signal import LEADS, lead_bits

__all__ = [
    "EVALUATED",
    "MIN_POSITIVES",
    "VOLTAGE_CODES",
    "BankError",
    "Label",
    "LabelBank",
    "OwnPrevalence",
    "RowsMade",
    "Share",
    "TextModel",
    "Tier",
    "assessable",
    "rests_on_amplitude",
    "tier_of",
    "tiers_said",
]

MAGIC = b"ECGBANK1"
MIN_POSITIVES = 10  # training positives below which a label has no probability
EVALUATED = (30, 10)  # least training and least held-out positives of a label whose figures mean something
UNIT_TOLERANCE = 1e-3
MAX_HEADER = 8 << 20  # bytes

# statements that rest on an amplitude in mV, by (scheme, code): voltages, hypertrophy, atrial enlargement, tall T
VOLTAGE_CODES = frozenset(
    (
        *(("scp", code) for code in ("LVOLT", "HVOLT", "VCLVH", "LVH", "RVH", "SEHYP", "LAO/LAE", "RAO/RAE")),
        *(("snomed_ct", code) for code in ("251146004", "55827005", "164873001", "89792004", "67741000119109", "446358003")),
        ("snomed_ct", "251259000"),
    )
)

Floats = NDArray[np.float32]
MAX_NUMBER = 1e4  # of scale, bias and calibration: far beyond any use, far within float32
Finite = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
Open = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Tier = Literal["evaluated", "trained", "unsupported"]
Urgency = Literal["normal", "routine", "routine_new_urgent", "urgent", "critical"]
LeadsNeeded = Literal["any", "limb", "V1|V2", "12"]


class BankError(ValueError):
    """Bytes that are not a label bank, or a bank that does not fit; the text gives the two values that differ."""


def tier_of(positives: int, held_out: int | None, beyond_chance: bool = True) -> Tier:
    """How far the evidence of a label goes. positives: in training; held_out: in records that no weight was fitted on.

    beyond_chance: whether the 95 % interval of its AUROC there lies above 0.5; True also where that is not measured yet.
    """
    if positives < MIN_POSITIVES:
        return "unsupported"
    enough = beyond_chance and positives >= EVALUATED[0] and held_out is not None and held_out >= EVALUATED[1]
    return "evaluated" if enough else "trained"


def assessable(leads_needed: str, mask: int) -> bool:
    """Whether leads `mask` (12 bits, derived ones too) suffice; "limb" needs two of I, II, III, which give the plane."""
    if leads_needed == "any":
        return mask != 0
    if leads_needed == "limb":
        return (mask & 0b111).bit_count() >= 2
    if leads_needed == "V1|V2":
        return bool(mask & lead_bits(("V1", "V2")))
    return mask == (1 << len(LEADS)) - 1


def rests_on_amplitude(codes: Mapping[str, Iterable[str]]) -> bool:
    """codes: by scheme. Whether the statement needs an amplitude in mV, and so says nothing where the unit is lost (NU)."""
    return any((scheme, code) in VOLTAGE_CODES for scheme, group in codes.items() for code in group)


def tiers_said(labels: Iterable[Label]) -> str:
    """How many labels have which tier, for people."""
    tiers = [label.tier for label in labels]
    each = ", ".join(f"{tiers.count(tier)} {tier}" for tier in get_args(Tier))
    return f"{each} (without a probability)"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Frozen):
    """One diagnostic statement. bias, calibration (a, b): probability = sigmoid(a * logit + b), logit = scale * cosine + bias.

    codes: by scheme ("snomed_ct", "scp"). positives, held_out: records that state it in the training data and among those that
    no weight was fitted on (None: not counted). tier: ``evaluated`` with at least 30 and 10 of them and an AUROC beyond chance,
    ``trained`` with at least 10 training positives, else ``unsupported``: no probability. threshold: on the probability, None
    where it could not be chosen.
    """

    id: str = Field(min_length=1, max_length=64)
    name_en: str
    name_ja: str
    codes: dict[str, tuple[str, ...]]
    urgency: Urgency
    leads_needed: LeadsNeeded
    tier: Tier
    positives: int = Field(ge=0)
    held_out: int | None = Field(default=None, ge=0)
    bias: Finite
    calibration: tuple[Finite, Finite] | None
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None

    @model_validator(mode="after")
    def _evidence(self) -> Self:
        """No probability without evidence, none missing with it, and none that rises as the logit falls."""
        supported = self.tier != "unsupported"
        if supported != (self.calibration is not None):
            raise ValueError(f"label {self.id}: tier {self.tier} does not go with calibration {self.calibration}")
        if supported != (self.positives >= MIN_POSITIVES):
            raise ValueError(f"label {self.id}: tier {self.tier} does not go with {self.positives} positives")
        if self.tier == "evaluated" and tier_of(self.positives, self.held_out) != "evaluated":
            raise ValueError(
                f"label {self.id}: tier evaluated does not go with {self.positives} training "
                f"and {self.held_out} held-out positives"
            )
        if self.calibration is not None and not 0 < self.calibration[0] <= MAX_NUMBER:
            raise ValueError(f"label {self.id}: a slope above 0 expected, got {self.calibration[0]}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_was_not_counted(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Banks made before held-out positives were counted keep their bytes, and so their digests."""
        out: dict[str, Any] = handler(self)
        if self.held_out is None:
            del out["held_out"]
        return out

    def assessable(self, mask: int) -> bool:
        """Whether leads `mask` (12 bits, derived ones too) suffice."""
        return assessable(self.leads_needed, mask)


class TextModel(_Frozen):
    """The frozen language model that embedded the label sentences, and how."""

    model: str
    pooling: Literal["last", "mean", "weighted"]
    prompt: str
    language: Literal["en", "ja"]
    note: str = ""


class RowsMade(_Frozen):
    """How the rows came from the label sentences, by sha256 of the numbers of each step (little-endian); None: not done.

    sentences: float32 (L, E), as the language model gave them. mean: float64 (E,), taken off. whitening: float64 (E, D).
    projection: float32 (D, D) or (D, E), None where it is the identity. Which step gave a row can be told from these, not
    the step itself.
    """

    sentences: Hex
    mean: Hex | None
    whitening: Hex | None
    projection: Hex | None


class Share(_Frozen):
    """Of the people recorded, how many have the finding: in the training data, and where the bank is used."""

    training: Open
    own: Open


class OwnPrevalence(_Frozen):
    """kind: always "own". labels: by id, those whose calibration and threshold were moved from training to own prevalence."""

    kind: Literal["own"] = "own"
    labels: dict[str, Share] = Field(min_length=1)


class _Header(_Frozen):
    format: Literal[1]
    encoder: Hex
    dim: int = Field(ge=1, le=65536)
    scale: Annotated[float, Field(gt=0, le=MAX_NUMBER, allow_inf_nan=False)]
    text: TextModel
    labels: tuple[Label, ...] = Field(min_length=1)
    rows: RowsMade | None = None
    prevalence: OwnPrevalence | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_told(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Banks made before these two were kept, and banks at training prevalence, have no such key."""
        out: dict[str, Any] = handler(self)
        for name in ("rows", "prevalence"):
            if out[name] is None:
                del out[name]
        return out


@dataclass(frozen=True, eq=False)
class LabelBank:
    """labels: L of them. matrix: (L, D) float32 unit rows, read-only. encoder: sha256 of the encoder.onnx it belongs to.

    made: None in banks made before it was kept. prevalence: None where probabilities hold for the training prevalence.
    Raises BankError when shapes, ids, row norms or finiteness are wrong.
    """

    labels: tuple[Label, ...]
    matrix: Floats
    scale: float
    encoder: str
    text: TextModel
    made: RowsMade | None = None
    prevalence: OwnPrevalence | None = None

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float32, order="C")
        if matrix.ndim != 2 or matrix.shape[0] != len(self.labels):
            raise BankError(f"label bank: {len(self.labels)} labels but a matrix of shape {matrix.shape}")
        ids = [label.id for label in self.labels]
        if len(set(ids)) != len(ids):
            raise BankError(f"label bank: {len(ids)} labels but only {len(set(ids))} distinct ids")
        served = {label.id for label in self.labels if label.calibration is not None}
        if self.prevalence and (strangers := sorted(set(self.prevalence.labels) - served)):
            raise BankError(f"label bank: own prevalence of {', '.join(strangers)}, which has no probability in it")
        if not np.isfinite(matrix).all():
            raise BankError(f"label bank: 0 non-finite values expected, found {int((~np.isfinite(matrix)).sum())}")
        norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
        worst = int(np.abs(norms - 1).argmax())
        if abs(norms[worst] - 1) > UNIT_TOLERANCE:
            raise BankError(f"label bank: row {ids[worst]!r} must have norm 1, has {norms[worst]:.6g}")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.matrix.shape[1])

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of `to_bytes()`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @cached_property
    def _platt(self) -> tuple[Floats, Floats, Floats]:
        """bias (L,), a (L,), b (L,); a is NaN for labels without a probability."""
        nan = (float("nan"), 0.0)
        pairs = [(x.calibration or (1.0, 0.0)) if x.tier != "unsupported" else nan for x in self.labels]
        a, b = np.array(pairs, dtype=np.float32).T
        return np.array([x.bias for x in self.labels], dtype=np.float32), a, b

    def to_bytes(self) -> bytes:
        """The bank as stored; equal banks give equal bytes."""
        header = _Header(
            format=1,
            encoder=self.encoder,
            dim=self.dim,
            scale=self.scale,
            text=self.text,
            labels=self.labels,
            rows=self.made,
            prevalence=self.prevalence,
        ).model_dump(mode="json")
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        return MAGIC + struct.pack("<I", len(text)) + text + self.matrix.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, expect_digest: str | None = None) -> LabelBank:
        """The bank in `data`. Raises BankError for anything else, naming what was expected and what is there."""
        if expect_digest is not None and (digest := hashlib.sha256(data).hexdigest()) != expect_digest:
            raise BankError(f"label bank: digest {expect_digest} expected, the bytes have {digest}")
        if data[: len(MAGIC)] != MAGIC:
            raise BankError(f"label bank: magic {MAGIC!r} expected, found {data[: len(MAGIC)]!r}")
        start = len(MAGIC) + 4
        if len(data) < start:
            raise BankError(f"label bank: at least {start} bytes expected, got {len(data)}")
        (length,) = struct.unpack_from("<I", data, len(MAGIC))
        if length > MAX_HEADER or start + length > len(data):
            raise BankError(f"label bank: header of {length} bytes announced, {len(data) - start} bytes follow")
        header = _read_header(data[start : start + length])
        n, size = len(header.labels), len(data) - start - length
        if size != n * header.dim * 4:
            raise BankError(f"label bank: {n} x {header.dim} float32 are {n * header.dim * 4} bytes, found {size}")
        matrix = np.frombuffer(data, "<f4", offset=start + length).reshape(n, header.dim)
        told = (header.scale, header.encoder, header.text, header.rows, header.prevalence)
        bank = cls(header.labels, matrix.astype(np.float32), *told)
        if bank.to_bytes() != data:
            raise BankError(f"label bank: bytes as this software writes them expected ({bank.digest}), found another spelling")
        return bank

    def check(self, encoder_digest: str, dim: int) -> None:
        """Raises BankError unless the bank was made for this encoder."""
        if self.encoder != encoder_digest:
            raise BankError(f"label bank is for encoder {self.encoder}, this encoder is {encoder_digest}")
        if self.dim != dim:
            raise BankError(f"label bank has D = {self.dim}, this encoder gives D = {dim}")

    @cached_property
    def weights(self) -> tuple[Floats, Floats]:
        """(L, D) rows times scale, and (L,) biases: logits = e @ rows.T + biases."""
        return self.matrix * np.float32(self.scale), np.asarray(self._platt[0], dtype=np.float32)

    def logits(self, e: Floats) -> Floats:
        """e: (B, D) unit-norm -> (B, L): scale * cosine + bias."""
        if e.ndim != 2 or e.shape[1] != self.dim:
            raise BankError(f"embeddings (B, {self.dim}) expected, got {e.shape}")
        return np.asarray(np.float32(self.scale) * (e @ self.matrix.T) + self._platt[0], dtype=np.float32)

    def probabilities(self, e: Floats) -> Floats:
        """e: (B, D) unit-norm -> (B, L) calibrated probabilities, NaN for unsupported labels."""
        return self.calibrated(self.logits(e))

    def calibrated(self, logits: Floats) -> Floats:
        """(B, L) of `logits` -> probabilities, NaN for unsupported labels."""
        _, a, b = self._platt
        z = np.clip(a * logits + b, -80, 80)  # NaN passes through
        return np.asarray(1 / (1 + np.exp(-z)), dtype=np.float32)


def _read_header(raw: bytes) -> _Header:
    try:
        return _Header.model_validate(json.loads(raw.decode()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "header"
        raise BankError(f"label bank: {where}: {first['msg']}, found {str(first['input'])[:60]!r}") from None
    except (ValueError, RecursionError) as error:
        raise BankError(f"label bank: a JSON header expected, found {raw[:24]!r} ({error})") from None
