"""A recording made by formula, for golden.npz: the same counts on every machine, nobody's ECG."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encoders.signal import LEADS, Layout

__all__ = ["golden_recording"]

FS_MHZ = 500_000
RATE_S, SECONDS, GAIN = 0.84, 10, 1000.0  # a beat every 0.84 s
WAVES = ((-0.20, 0.025, 0.15), (-0.03, 0.010, -0.1), (0.0, 0.011, 1.1), (0.03, 0.011, -0.22), (0.28, 0.055, 0.3))
# onset from R in s, width in s, height in mV of P, Q, R, S, T in lead II, and each lead's share of them
SHARE = {"I": 0.6, "V1": -0.5, "V2": -0.3, "V3": 0.4, "V4": 1.1, "V5": 1.0, "V6": 0.8}


def golden_recording() -> tuple[NDArray[np.int16], Layout]:
    """int16 (12, 5000) counts at 500 Hz, 1000 counts a mV, and the layout; sums of Gaussian waves, Einthoven's law kept."""
    t = np.arange(SECONDS * FS_MHZ // 1000) / (FS_MHZ / 1000)
    phase = (t + 0.4) % RATE_S - 0.4
    two = sum(height * np.exp(-(((phase - at) / width) ** 2) / 2) for at, width, height in WAVES)
    drift = 0.05 * np.sin(2 * np.pi * 0.3 * t)
    lead = {name: share * two for name, share in SHARE.items()} | {"II": two + drift}
    one = lead["I"]
    lead |= {"III": lead["II"] - one, "aVR": -(one + lead["II"]) / 2, "aVL": one - lead["II"] / 2, "aVF": lead["II"] - one / 2}
    counts = np.stack([np.round(GAIN * lead[name]) for name in LEADS]).astype(np.int16)
    return counts, Layout.of(FS_MHZ, LEADS, [GAIN])
