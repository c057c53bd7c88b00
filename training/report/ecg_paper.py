"""A prepared window drawn as an electrocardiograph prints it: 25 mm/s on millimetre paper, as inline SVG.

12 leads: three rows of four leads, 2.5 s each and following each other in time, above 10 s of lead II. Up to three leads: a
row of 10 s each. What was prepared is what is drawn: 0.5 to 40 Hz, each lead divided by its own standard deviation (SD), so
that the height is in SD, not in mV, and one lead's height says nothing of another's. The drawing says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.signal import FS, LEADS, WINDOW, lead_bits, lead_names

__all__ = ["ecg_paper"]

UNIT = 4  # SVG units a mm
SPEED = 25  # mm/s
HEIGHT = 3  # mm an SD: an R wave of 5 to 7 SD fills most of a row
ROW = 25  # mm
LEFT, RIGHT, TOP, FOOT = 15, 5, 8, 8  # mm around the rows
EVERY = 2  # samples: 250 Hz are 10 points a mm, and nothing above 40 Hz is left
STRIPS = 3  # as many leads at most are drawn as rows of 10 s
RHYTHM = "II"
NOTE = (
    f"{SPEED} mm/s · {HEIGHT} mm = 1 SD · 0.5–40 Hz · each lead scaled by its own SD: heights are not mV and do not compare "
    "between leads"
)


Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Piece:
    """Lead `lead` from sample `start` to `end`, in row `row`."""

    lead: str
    row: int
    start: int
    end: int


def _pieces(mask: int) -> list[_Piece]:
    """What is drawn where; leads that are not there leave their place empty."""
    names = lead_names(mask)
    if len(names) <= STRIPS:
        return [_Piece(name, i, 0, WINDOW) for i, name in enumerate(names)]
    quarter = WINDOW // 4
    places = [_Piece(name, i % 3, i // 3 * quarter, (i // 3 + 1) * quarter) for i, name in enumerate(LEADS)]
    strip = RHYTHM if RHYTHM in names else names[0]
    return [*places, _Piece(strip, 3, 0, WINDOW)]


def ecg_paper(x: Floats, mask: int, derived: int, n_valid: int, key: str) -> str:
    """x: (12, 5000), a prepared window; mask, derived: lead bits; n_valid: samples before padding -> an <svg>.

    key: distinct among the drawings of a page, for the ids inside.
    """
    pieces = _pieces(mask)
    rows = 1 + max((p.row for p in pieces), default=0)
    width, height = LEFT + SPEED * WINDOW // FS + RIGHT, TOP + ROW * rows + FOOT
    paper = height - FOOT + 1
    traces = [_trace(x[LEADS.index(piece.lead)], piece, n_valid) for piece in pieces if mask & lead_bits((piece.lead,))]
    inside = "".join([*traces, *(_name(piece, mask, derived) for piece in pieces)])
    cut = f"<svg width='{width * UNIT}' height='{paper * UNIT}'>{inside}</svg>"  # an artefact ends where the paper does
    font = "font-family='system-ui,sans-serif' font-size='13'"
    size = f"viewBox='0 0 {width * UNIT} {height * UNIT}' style='width:{width}mm;max-width:100%'"
    note = f"<text x='{UNIT}' y='{(height - 2) * UNIT}'>{NOTE}</text>"
    head = f"<svg class='ecg' {size} {font} role='img'>"
    return f"{head}{_paper(width, paper, key)}{_pulse(rows)}{cut}{note}</svg>"


def _paper(width: int, height: int, key: str) -> str:
    """Lines each mm, stronger ones each 5 mm, which are 0.2 s."""
    one, five = UNIT, 5 * UNIT
    return (
        f"<defs><pattern id='{key}' width='{five}' height='{five}' patternUnits='userSpaceOnUse'>"
        f"<path d='{''.join(f'M{k * one} 0V{five}M0 {k * one}H{five}' for k in range(1, 5))}' stroke='#f6d5d5' "
        f"stroke-width='.6'/><path d='M0 0H{five}M0 0V{five}' stroke='#e9a9a9' stroke-width='1.6'/></pattern></defs>"
        f"<rect width='{width * UNIT}' height='{height * UNIT}' fill='#fffafa'/>"
        f"<rect width='{width * UNIT}' height='{height * UNIT}' fill='url(#{key})'/>"
    )


def _middle(row: int) -> float:
    """Where a row's zero lies."""
    return (TOP + ROW * (row + 0.55)) * UNIT


def _pulse(rows: int) -> str:
    """2 SD high and 0.2 s long, before each row."""
    h, w = 2 * HEIGHT * UNIT, 5 * UNIT
    steps = "".join(f"M{4 * UNIT} {_middle(row):.1f}h{w // 5}v-{h}h{w}v{h}h{w // 5}" for row in range(rows))
    label = f"<text x='{3 * UNIT}' y='{_middle(0) + 4 * UNIT:.1f}'>2 SD</text>"
    return f"<path d='{steps}' fill='none' stroke='#222' stroke-width='1.2'/>{label}"


def _trace(lead: Floats, piece: _Piece, n_valid: int) -> str:
    samples = np.arange(piece.start, min(piece.end, n_valid), EVERY)
    across = LEFT * UNIT + samples / FS * SPEED * UNIT
    down = _middle(piece.row) - lead[samples] * HEIGHT * UNIT
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    return f"<polyline points='{points}' fill='none' stroke='#111' stroke-width='1.1' stroke-linejoin='round'/>"


def _name(piece: _Piece, mask: int, derived: int) -> str:
    """The lead's name, and a stroke where one lead follows another."""
    left, middle, bit = (LEFT + piece.start / FS * SPEED) * UNIT, _middle(piece.row), lead_bits((piece.lead,))
    name = piece.lead + ("" if mask & bit else " not recorded") + (" derived" if derived & bit else "")
    place = f"x='{left + UNIT:.1f}' y='{middle - 8 * UNIT:.1f}' font-weight='600'"
    text = f"<text {place} stroke='#fffafa' stroke-width='4'>{name}</text><text {place}>{name}</text>"
    follows = f"<path d='M{left:.1f} {middle - 3 * UNIT:.1f}v{6 * UNIT}' stroke='#222' stroke-width='1'/>"
    return text + (follows if piece.start else "")
