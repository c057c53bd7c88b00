"""The device's side of the wire: int16 samples -> the Protobuf bytes of one `ecg.v1.Chunk`. It knows no broker."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encoders.signal import Layout
from stream_worker.proto.ecg_chunk_pb2 import MILLIVOLT, NO_UNIT, Chunk
from stream_worker.proto.ecg_chunk_pb2 import Layout as LayoutMessage

__all__ = ["encode_chunk"]


def encode_chunk(
    stream_id: str,
    session_id: str,
    session_start_ns: int,
    layout: Layout,
    first_sample: int,
    samples: NDArray[np.int16],
    last: bool = False,
) -> bytes:
    """samples: int16 (C, n), rows as layout.leads, ABSENT where a lead has none -> message value; its key is the stream id.

    One gain or baseline is written where all leads share it. Raises ValueError when the shape does not fit the layout.
    """
    if samples.ndim != 2 or samples.shape[0] != len(layout.leads) or samples.dtype != np.int16:
        raise ValueError(
            f"{len(layout.leads)} leads need int16 samples ({len(layout.leads)}, n), got {samples.dtype} {samples.shape}"
        )
    gain, baseline = layout.gain, layout.baseline
    return Chunk(
        stream_id=stream_id,
        session_id=session_id,
        session_start_ns=session_start_ns,
        first_sample=first_sample,
        layout=LayoutMessage(
            fs_mhz=layout.fs_mhz,
            leads=layout.leads,
            gain=gain[:1] if len(set(gain)) == 1 else gain,
            baseline=() if not any(baseline) else baseline[:1] if len(set(baseline)) == 1 else baseline,
            unit=NO_UNIT if layout.unit == "NU" else MILLIVOLT,
        ),
        samples=samples.astype("<i2", copy=False).tobytes(),
        last=last,
    ).SerializeToString()
