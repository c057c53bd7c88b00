"""Conventions of the ECG signal: lead names, the model's rate and length, and what a stream says of its own samples.

Letters at array lines: B batch, C recorded lead, T sample, D embedding, L label. Amplitudes are mV unless `unit` is
``NU`` (no unit: the amplitude was lost, for instance by z-scoring each lead).
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

__all__ = [
    "ABSENT",
    "FS",
    "LEADS",
    "WINDOW",
    "WINDOW_MS",
    "Layout",
    "SignalError",
    "canonical_lead",
    "lead_bits",
    "lead_names",
]

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
FS = 500  # Hz, the rate of the encoder's input
WINDOW = 5000  # samples, the length of the encoder's input
WINDOW_MS = 10_000
ABSENT = -32768  # the int16 that says "no sample of this lead"

FS_MHZ_RANGE = (50_000, 2_000_000)  # mHz
GAIN_RANGE = (1.0, 200_000.0)  # counts per mV
BASELINE_LIMIT = 1e6  # counts

_CANONICAL = {name.lower(): name for name in LEADS}
_ALIASES = {
    **{"ml" + roman: roman.upper() for roman in ("i", "ii", "iii")},  # Holter "modified" limb leads, MIT-BIH
    **{"d" + roman: roman.upper() for roman in ("i", "ii", "iii")},  # DI, DII, DIII
    **{"l" + roman: roman.upper() for roman in ("i", "ii", "iii")},
    **{f"{letter}{n}": ("I", "II", "III")[n - 1] for letter in ("d", "l") for n in (1, 2, 3)},  # D1, L1
    **{f"{p}{n}": f"V{n}" for p in ("c", "mcl", "mv", "cm") for n in range(1, 7)},  # IEC C1..C6, bedside MCL1
    **{"av" + foot: "aV" + foot.upper() for foot in "rlf"},
    **{"a" + foot: "aV" + foot.upper() for foot in "rlf"},
}
# a separator must follow a word, so that "ECGI" and a bare "I" stay apart; MDC names come with underscores
_PREFIX = re.compile(r"^(?:(?:mdc_ecg_lead|ecg|ekg|lead|abl|ch|chan|channel)[\s_\-:.]+)+", re.IGNORECASE)
_SUFFIX = re.compile(r"[\s_]*(?:\((?:m|u|µ)v\))?$", re.IGNORECASE)


class SignalError(ValueError):
    """A lead, rate, gain or shape that no encoder can be given; `code` is a short stable word for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def canonical_lead(name: str) -> str:
    """The standard name ("aVR") for a lead as vendors spell it ("AVR", "MDC_ECG_LEAD_AVR", "ECG Lead aVR", "D2").

    Raises SignalError("unknown_lead"). Inverted leads ("-aVR") are unknown on purpose: their sign is not ours to guess.
    """
    if len(name) > 64:
        raise SignalError("unknown_lead", f"a lead name of {len(name)} characters")
    short = _SUFFIX.sub("", _PREFIX.sub("", name.strip())).strip().lower()
    lead = _CANONICAL.get(short) or _ALIASES.get(short)
    if lead is None:
        raise SignalError("unknown_lead", f"unknown lead name {name[:40]!r}; known are {', '.join(LEADS)} and common aliases")
    return lead


def lead_bits(names: Sequence[str]) -> int:
    """12-bit mask of canonical lead names; bit 0 is lead I, bit 11 is V6."""
    return sum(1 << LEADS.index(name) for name in names)


@cache
def lead_names(bits: int) -> tuple[str, ...]:
    """The inverse of `lead_bits`."""
    return tuple(name for i, name in enumerate(LEADS) if bits >> i & 1)


@dataclass(frozen=True, slots=False)
class Layout:
    """How to read the int16 samples of a stream: (C, T) counts at one rate, canonical lead names.

    fs_mhz: sampling rate in mHz. gain: counts per mV, one a lead. baseline: counts at 0 mV, one a lead.
    unit: "mV", or "NU" where the amplitude is lost. Raises SignalError with code unknown_lead, doubled_lead, no_lead,
    fs_range, gain_range, baseline_range, layout_shape or unknown_unit.
    """

    fs_mhz: int
    leads: tuple[str, ...]
    gain: tuple[float, ...]
    baseline: tuple[float, ...]
    unit: str = "mV"

    def __post_init__(self) -> None:
        n = len(self.leads)
        if n == 0:
            raise SignalError("no_lead", "the signal names no lead")
        if len(set(self.leads)) != n:
            raise SignalError("doubled_lead", f"a lead is named twice in {', '.join(self.leads)}")
        if any(lead not in LEADS for lead in self.leads):
            raise SignalError("unknown_lead", f"leads must be canonical names, got {', '.join(self.leads)[:80]}")
        if len(self.gain) != n or len(self.baseline) != n:
            got = f"{len(self.gain)} gains and {len(self.baseline)} baselines"
            raise SignalError("layout_shape", f"{n} leads need as many gains and baselines, got {got}")
        if not FS_MHZ_RANGE[0] <= self.fs_mhz <= FS_MHZ_RANGE[1]:
            raise SignalError("fs_range", f"sampling rate {self.fs_mhz / 1000:g} Hz is outside 50 to 2000 Hz")
        if not all(math.isfinite(g) and GAIN_RANGE[0] <= g <= GAIN_RANGE[1] for g in self.gain):
            allowed = f"{GAIN_RANGE[0]:g} to {GAIN_RANGE[1]:g} counts per mV"
            raise SignalError("gain_range", f"gain must be {allowed}, got {self.gain[:12]}")
        if not all(math.isfinite(b) and abs(b) <= BASELINE_LIMIT for b in self.baseline):
            raise SignalError("baseline_range", f"baseline must be within {BASELINE_LIMIT:g} counts, got {self.baseline[:12]}")
        if self.unit not in ("mV", "NU"):
            raise SignalError("unknown_unit", f"unit must be mV or NU, got {self.unit[:20]!r}")

    @classmethod
    def of(
        cls, fs_mhz: int, leads: Sequence[str], gain: Sequence[float], baseline: Sequence[float] = (), unit: str = "mV"
    ) -> Layout:
        """A layout from names in any known spelling; one gain or baseline stands for all leads, none means 0 counts."""
        names = tuple(canonical_lead(name) for name in leads)
        n = len(names)
        gains = tuple(gain) * n if len(gain) == 1 else tuple(gain)
        bases = (0.0,) * n if not len(baseline) else tuple(baseline) * n if len(baseline) == 1 else tuple(baseline)
        return cls(fs_mhz, names, tuple(map(float, gains)), tuple(map(float, bases)), unit)

    @property
    def fs(self) -> float:
        """Sampling rate in Hz."""
        return self.fs_mhz / 1000

    @property
    def window(self) -> int:
        """Samples in a 10 s window at this rate (rounded down)."""
        return self.samples(WINDOW_MS)

    def samples(self, duration_ms: int) -> int:
        """Samples in `duration_ms`, rounded down, in integers."""
        return duration_ms * self.fs_mhz // 1_000_000

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that stand for rate, leads, gains, baselines and unit."""
        h = hashlib.sha256(struct.pack("<qI", self.fs_mhz, len(self.leads)))
        for lead, gain, baseline in zip(self.leads, self.gain, self.baseline, strict=True):
            h.update(struct.pack("<4sdd", lead.encode(), gain, baseline))
        h.update(self.unit.encode())
        return h.digest()[:16]
