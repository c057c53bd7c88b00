"""How good a record's signal is, by the same look at its leads that every finding carries (encoders/quality.py)."""

from __future__ import annotations

from encoders.preprocess import Calibrated, Prepared
from encoders.quality import assess
from encoders.signal import Layout

__all__ = ["ALL_GOOD", "MOST_POOR", "SOME_POOR", "grade"]

ALL_GOOD, SOME_POOR, MOST_POOR = "all leads good", "some leads poor", "most leads poor"


def grade(calibrated: Calibrated, prepared: Prepared, layout: Layout) -> str:
    """One window -> ALL_GOOD; SOME_POOR where half of the recorded leads or more are good; otherwise MOST_POOR.

    A lead is poor when it is flat, saturated or unusable (gaps), drifts by more than 1 mV, hums at 50 or 60 Hz or shows no
    plausible QRS; a short gap that was filled leaves it good. A lead alone is good, or most are poor. Where the amplitude is
    lost (NU), drift and saturation are not looked for. No annotator's grade: those stand beside it as `quality`.
    """
    good, recorded = assess(calibrated, prepared, layout).good.bit_count(), len(layout.leads)
    if good == recorded:
        return ALL_GOOD
    return SOME_POOR if 2 * good >= recorded else MOST_POOR
