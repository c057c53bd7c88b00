"""Simulated devices and load: a heart (see `heart`) with noise, drift, hum and loose electrodes, as devices would publish it.

Limb leads satisfy Einthoven in counts and Goldberger to half a count. Everything is a function of (device, sample index) and of
seeds: no state, no clock, no broker.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from encoders.signal import ABSENT, LEADS, Layout
from stream_worker.devices.encode import encode_chunk
from stream_worker.devices.heart import RHYTHMS, independent_leads
from stream_worker.proto.ecg_chunk_pb2 import Chunk

__all__ = ["RHYTHMS", "Device", "demo_devices", "encode_chunk", "fleet", "synthesize"]

BLOCK = 2048  # samples made at a time: any cut of a signal slices the same blocks
OFF_SECONDS = (20, 40)  # of every minute in which a lead that is off gives nothing
TEMPLATE_S = 60  # the fleet's waveforms repeat after a minute
GRACE_MS = 2000  # how far behind a run's highest index the worker still takes a chunk

Signal = NDArray[np.float64]


@dataclass(frozen=True)
class Device:
    """One device. gain: counts per mV. heart_rate: beats per minute on average. noise_mv: SD of the white noise of each lead.

    rhythm: sinus | af | bigeminy | paced. lead_off: a lead that gives no samples from second 20 to 40 of each minute ("V5"),
    or stays flat then ("V5:flat"). wander_mv, mains_mv: amplitudes of slow drift and of mains hum on each electrode.
    """

    stream_id: str
    rhythm: str
    leads: tuple[str, ...]
    fs_mhz: int
    gain: float
    heart_rate: float
    noise_mv: float
    lead_off: str | None
    seed: int
    session_id: str = "1"
    session_start_ns: int = 0
    wander_mv: float = 0.08
    mains_mv: float = 0.0
    mains_hz: float = 50.0

    def __post_init__(self) -> None:
        if self.rhythm not in RHYTHMS:
            raise ValueError(f"rhythm must be one of {', '.join(RHYTHMS)}, got {self.rhythm!r}")
        if not 20 <= self.heart_rate <= 250:
            raise ValueError(f"heart rate must be 20 to 250 per minute, got {self.heart_rate}")
        if self.lead_off is not None and self.lead_off.removesuffix(":flat") not in self.leads:
            raise ValueError(f"the lead that is off, {self.lead_off!r}, is none of {', '.join(self.leads)}")

    @property
    def layout(self) -> Layout:
        n = len(self.leads)
        return Layout(self.fs_mhz, self.leads, (self.gain,) * n, (0.0,) * n)


def synthesize(device: Device, n_samples: int, first_sample: int = 0) -> NDArray[np.int16]:
    """int16 (C, n_samples) from sample `first_sample` of the session on; the same samples however the signal is cut."""
    if n_samples < 0 or first_sample < 0:
        raise ValueError("a session has no samples before 0")
    out = np.empty((len(device.leads), n_samples), dtype=np.int16)
    done = 0
    while done < n_samples:
        index, offset = divmod(first_sample + done, BLOCK)
        n = min(BLOCK - offset, n_samples - done)
        out[:, done : done + n] = _block(device, index)[:, offset : offset + n]
        done += n
    return out


@lru_cache(maxsize=128)
def _block(device: Device, index: int) -> NDArray[np.int16]:
    """int16 (C, BLOCK): samples index * BLOCK and following."""
    fs = device.fs_mhz / 1000
    t = (np.arange(BLOCK) + index * BLOCK) / fs  # s since sample 0
    mv = independent_leads(device.rhythm, device.heart_rate, device.seed, t) + _disturbance(device, index, t)  # (8, BLOCK)
    counts = np.rint(mv * device.gain)
    one, two = counts[0], counts[1]
    limb = [one, two, two - one, np.rint(-(one + two) / 2), np.rint(one - two / 2), np.rint(two - one / 2)]
    every = np.concatenate([np.stack(limb), counts[2:]])  # (12, BLOCK)
    samples: NDArray[np.int16] = np.clip(every[[LEADS.index(lead) for lead in device.leads]], -32767, 32767).astype(np.int16)
    if device.lead_off is not None:
        lead, _, how = device.lead_off.partition(":")
        off = (t % 60 >= OFF_SECONDS[0]) & (t % 60 < OFF_SECONDS[1])
        samples[device.leads.index(lead), off] = 0 if how == "flat" else ABSENT
    samples.flags.writeable = False
    return samples


def _disturbance(device: Device, index: int, t: Signal) -> Signal:
    """Noise, drift and mains hum (8, T) in mV of the leads I, II, V1..V6."""
    rng = np.random.default_rng([device.seed, 3, index])
    out = device.noise_mv * rng.standard_normal((8, len(t)))
    fixed = np.random.default_rng([device.seed, 4])
    phases = fixed.uniform(0, 2 * np.pi, (8, 3))
    for j, (hz, share) in enumerate(((0.07, 0.5), (0.19, 0.35), (0.27, 0.25))):
        out += device.wander_mv * share * np.sin(2 * np.pi * hz * t + phases[:, j : j + 1])
    if device.mains_mv:
        out += device.mains_mv * fixed.uniform(0.5, 1.0, (8, 1)) * np.sin(2 * np.pi * device.mains_hz * t)
    return out


def demo_devices(seed: int = 0) -> tuple[Device, ...]:
    """Six devices of different rhythms, lead sets and rates."""
    limb = LEADS[:6]
    return (
        Device("bed-01", "sinus", LEADS, 500_000, 1000.0, 72, 0.010, None, seed * 100 + 1),
        Device("bed-02", "af", LEADS, 500_000, 1000.0, 96, 0.012, None, seed * 100 + 2, mains_mv=0.02),
        Device("holter-03", "bigeminy", ("II", "V5"), 360_000, 200.0, 74, 0.015, None, seed * 100 + 3, wander_mv=0.15),
        Device("bed-04", "paced", LEADS, 1_000_000, 400.0, 68, 0.010, None, seed * 100 + 4),
        Device("phone-05", "af", ("I",), 300_000, 1000.0, 118, 0.025, None, seed * 100 + 5, wander_mv=0.2),
        Device("patch-06", "sinus", limb, 250_000, 500.0, 104, 0.015, "aVF", seed * 100 + 6, wander_mv=0.15),
    )


def fleet(
    n_streams: int,
    seconds: float,
    chunk_ms: int = 1000,
    drop: float = 0.0,
    duplicate: float = 0.0,
    reorder: float = 0.0,
    skew_ms: int = 0,
    seed: int = 0,
    devices: Sequence[Device] | None = None,
    session_start_ns: int = 0,
    last: bool = True,
    number_from: int = 0,
) -> Iterator[tuple[bytes, bytes, float]]:
    """Load: (key, value, second of publication) of many streams, in the order of publication.

    drop, duplicate, reorder: shares of chunks that are lost, sent once more, or sent late, never later than the worker's grace.
    skew_ms: device clocks are off by up to this much either way. devices: the waveforms, taken in turns (default: the demo's).
    last: whether each stream's last chunk (never lost or late) ends its session. Waveforms are made once; they repeat.
    number_from: the first stream's number in its id, so that several fleets are one.
    """
    rng = np.random.default_rng([seed, 5])
    templates = [_Template(device, chunk_ms) for device in devices or demo_devices(seed)]
    skews = rng.integers(-skew_ms, skew_ms + 1, n_streams) * 1_000_000
    phases = np.sort(rng.uniform(0, chunk_ms / 1000, n_streams))  # devices do not publish in step
    keys = [f"sim-{i:05d}" for i in range(number_from, number_from + n_streams)]
    heads = [
        Chunk(stream_id=key, session_id="1", session_start_ns=session_start_ns + int(skew)).SerializeToString()
        for key, skew in zip(keys, skews, strict=True)
    ]
    n_chunks = int(seconds * 1000 // chunk_ms)
    for tick, i, chunk in _order(rng, n_streams, n_chunks, max(GRACE_MS // chunk_ms - 1, 0), (drop, duplicate, reorder)):
        body = templates[i % len(templates)].body(chunk, last and chunk == n_chunks - 1)
        yield keys[i].encode(), heads[i] + body, (tick + 1) * chunk_ms / 1000 + float(phases[i])


def _order(
    rng: np.random.Generator, n_streams: int, n_chunks: int, latest: int, shares: tuple[float, float, float]
) -> Iterator[tuple[int, int, int]]:
    """(tick, stream, chunk) as published. latest: chunks by which one may come late and still be within the grace."""
    drop, duplicate, reorder = shares
    waiting: list[tuple[int, int, int]] = []  # late and repeated chunks
    for tick in range(n_chunks):
        lost, late, again = (
            rng.random((3, n_streams)) < np.array([[drop], [reorder if latest else 0.0], [duplicate]])
        ).tolist()
        lags = rng.integers(min(latest, 1), latest + 1, (n_streams, 2)).tolist()
        final = tick == n_chunks - 1  # neither lost nor late: all that waits goes before it
        for i in range(n_streams):
            goes_now = final or not (lost[i] or late[i])
            if not final and not lost[i]:
                for lag, wanted in zip(lags[i], (late[i], again[i]), strict=True):
                    if wanted:
                        heapq.heappush(waiting, (min(tick + lag, n_chunks - 1), i, tick))
            if goes_now and not final:
                yield tick, i, tick
            while waiting and waiting[0][:2] <= (tick, i):
                yield tick, i, heapq.heappop(waiting)[2]
            if final:
                yield tick, i, tick


class _Template:
    """The chunks of one device's first minute, encoded once. A message is the concatenation of its fields in any parts."""

    def __init__(self, device: Device, chunk_ms: int) -> None:
        layout = device.layout
        self._chunk_samples = layout.samples(chunk_ms)
        n = max(TEMPLATE_S * 1000 // chunk_ms, 1)
        samples = synthesize(device, n * self._chunk_samples)  # (C, T)
        cut = np.split(samples, n, axis=1)
        self._bodies = [encode_chunk("", "", 0, layout, 0, np.ascontiguousarray(part)) for part in cut]

    def body(self, chunk: int, last: bool) -> bytes:
        """All fields but the stream's and the session's own."""
        first = Chunk(first_sample=chunk * self._chunk_samples).SerializeToString()
        return first + self._bodies[chunk % len(self._bodies)] + (_LAST if last else b"")


_LAST = Chunk(last=True).SerializeToString()
