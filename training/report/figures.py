"""Pictures of the report as inline SVG: a dot with its interval, the reliability curve, ROC curves. N record.

Small by hand: no script, and nothing of a plotting library's weight in the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.metrics import roc_curve

from training.evaluation.reliability import DRAWS, equal_mass

__all__ = ["Bin", "Curve", "axis", "reliability_bins", "reliability_figure", "roc_figure", "span"]

LEAST = 0.5  # AUROC at the left end of a picture
SPAN, TALL = 170, 14  # px of one dot with its interval
SIDE = 8  # px beside the ends
BLUE, GREY, RED = "#2f6f9f", "#9aa7b3", "#b5382f"
ODDS_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99)
MOST_POINTS = 120  # of one ROC curve

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def _across(value: float) -> float:
    """AUROC -> px; what is below 0.5 is drawn at the left end."""
    return SIDE + (max(value, LEAST) - LEAST) / (1 - LEAST) * (SPAN - 2 * SIDE)


def axis() -> str:
    """The scale above a column of `span`s."""
    ticks = "".join(
        f"<text x='{_across(v):.1f}' y='10' text-anchor='middle'>{v:g}</text>" for v in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    )
    return f"<svg width='{SPAN}' height='{TALL}' font-size='10' fill='#51606e'>{ticks}</svg>"


def span(value: float | None, interval: Sequence[float] | None, other: float | None = None) -> str:
    """An AUROC as a dot, its interval as a line; `other`, to compare with, as a hollow dot. Scale: `axis`."""
    middle = TALL / 2
    ticks = "".join(f"M{_across(v):.1f} 0V{TALL}" for v in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    drawn = [f"<path d='{ticks}' stroke='#e6ecf1'/>"]
    if interval is not None:
        low, high = (_across(v) for v in interval)
        drawn.append(f"<path d='M{low:.1f} {middle}H{high:.1f}' stroke='{BLUE}' stroke-width='2'/>")
    if other is not None:
        drawn.append(
            f"<circle cx='{_across(other):.1f}' cy='{middle}' r='4.2' fill='none' stroke='{GREY}' stroke-width='1.5'/>"
        )
    if value is not None:
        drawn.append(f"<circle cx='{_across(value):.1f}' cy='{middle}' r='3.4' fill='{BLUE}'/>")
    return f"<svg width='{SPAN}' height='{TALL}'>{''.join(drawn)}</svg>"


@dataclass(frozen=True)
class Bin:
    """Records of like probability: the mean said, the frequency seen, and the 95 % range of perfect probabilities."""

    count: int
    said: float
    seen: float
    low: float
    high: float


def reliability_bins(p: Floats, y: Bools, seed: int = 0) -> list[Bin]:
    """p, y: (n,) -> bins of equally many, as in `calibration_error`. The range: truth drawn from p itself, 500 times."""
    order, first = equal_mass(p)
    count = np.diff(np.append(first, len(p)))

    def mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(values, first) / count, dtype=np.float64)

    rng, sorted_p = np.random.default_rng(seed), p[order].astype(np.float64)
    drawn = [mean((rng.random(len(p)) < sorted_p).astype(np.float64)) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    columns = (count, mean(sorted_p), mean(y[order].astype(np.float64)), low, high)
    return [Bin(int(n), *map(float, rest)) for n, *rest in zip(*columns, strict=True)]


def reliability_figure(bins: Sequence[Bin], size: int = 330) -> str:
    """Said against seen, on a scale of log odds, where the rare and the common both have room."""
    ends = logit(5e-4), logit(0.998)
    left, top = 48, 8

    def place(v: float) -> float:
        """0 to 1 along the axis; 0 and 1 themselves lie at its ends."""
        return float(np.clip((logit(np.clip(v, 1e-9, 1 - 1e-9)) - ends[0]) / (ends[1] - ends[0]), 0, 1))

    def point(x: float, y: float) -> str:
        return f"{left + place(x) * size:.1f},{top + (1 - place(y)) * size:.1f}"

    band = [point(b.said, b.low) for b in bins] + [point(b.said, b.high) for b in reversed(bins)]
    drawn = [_grid(left, top, size, [(place(v), f"{v * 100:g}") for v in ODDS_TICKS], "said, %", "seen, %")]
    drawn.append(f"<polygon points='{' '.join(band)}' fill='#d5dde4'/>")
    drawn.append(f"<path d='M{left} {top + size}L{left + size} {top}' stroke='{GREY}' stroke-dasharray='4 3'/>")
    line = " ".join(point(b.said, b.seen) for b in bins)
    drawn.append(f"<polyline points='{line}' fill='none' stroke='{BLUE}' stroke-width='1.5'/>")
    for b in bins:
        colour = BLUE if b.low <= b.seen <= b.high else RED
        x, y = point(b.said, b.seen).split(",")
        title = f"<title>{b.count} entries: said {b.said:.3f}, seen {b.seen:.3f}</title>"
        drawn.append(f"<circle cx='{x}' cy='{y}' r='4' fill='{colour}'>{title}</circle>")
    return f"<svg width='{left + size + 12}' height='{top + size + 40}' font-size='11' role='img'>{''.join(drawn)}</svg>"


def _grid(left: int, top: int, size: int, ticks: Sequence[tuple[float, str]], across: str, up: str) -> str:
    """A square with the same ticks (place from 0 to 1, text) on both axes."""
    lines, texts, bottom = [], [], top + size
    for place, text in ticks:
        x, y = left + place * size, bottom - place * size
        lines.append(f"M{x:.1f} {top}V{bottom}M{left} {y:.1f}H{left + size}")
        texts.append(f"<text x='{x:.1f}' y='{bottom + 14}' text-anchor='middle'>{text}</text>")
        texts.append(f"<text x='{left - 6}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>")
    names = f"<text x='{left + size / 2}' y='{bottom + 31}' text-anchor='middle'>{across}</text>"
    names += f"<text transform='translate(11 {top + size / 2}) rotate(-90)' text-anchor='middle'>{up}</text>"
    frame = f"<rect x='{left}' y='{top}' width='{size}' height='{size}' fill='none' stroke='#b8c2cc'/>"
    return f"<path d='{''.join(lines)}' stroke='#e6ecf1'/>{frame}<g fill='#51606e'>{''.join(texts)}{names}</g>"


@dataclass(frozen=True)
class Curve:
    """One label's scores on the records that know it. p, y: (n,). threshold: on p, None without one."""

    name: str
    auroc: float
    p: Floats
    y: Bools
    threshold: float | None


def roc_figure(curve: Curve, size: int = 150) -> str:
    """Sensitivity against 1 - specificity, with a dot where the threshold lies."""
    false, true, _ = roc_curve(curve.y, curve.p)
    some = np.unique(np.linspace(0, len(false) - 1, min(len(false), MOST_POINTS)).round().astype(int))
    left, top = 42, 22
    points = " ".join(f"{left + a * size:.1f},{top + (1 - b) * size:.1f}" for a, b in zip(false[some], true[some], strict=True))
    drawn = [_grid(left, top, size, [(v, f"{v:g}") for v in (0, 0.5, 1)], "1 − specificity", "sensitivity")]
    drawn.append(f"<path d='M{left} {top + size}L{left + size} {top}' stroke='{GREY}' stroke-dasharray='4 3'/>")
    drawn.append(f"<polyline points='{points}' fill='none' stroke='{BLUE}' stroke-width='1.8'/>")
    if curve.threshold is not None:
        said = curve.p >= curve.threshold
        x, y = left + said[~curve.y].mean() * size, top + (1 - said[curve.y].mean()) * size
        drawn.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{RED}'/>")
    title = f"<text x='{left}' y='14' font-size='12'><tspan font-weight='600'>{curve.name}</tspan> {curve.auroc:.3f}</text>"
    return f"<svg width='{left + size + 10}' height='{top + size + 38}' font-size='10'>{title}{''.join(drawn)}</svg>"
