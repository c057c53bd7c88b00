from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Order(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEAD_MAJOR: _ClassVar[Order]
    INTERLEAVED: _ClassVar[Order]

class Unit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MILLIVOLT: _ClassVar[Unit]
    NO_UNIT: _ClassVar[Unit]
LEAD_MAJOR: Order
INTERLEAVED: Order
MILLIVOLT: Unit
NO_UNIT: Unit

class Layout(_message.Message):
    __slots__ = ("fs_mhz", "leads", "gain", "baseline", "unit")
    FS_MHZ_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    GAIN_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    fs_mhz: int
    leads: _containers.RepeatedScalarFieldContainer[str]
    gain: _containers.RepeatedScalarFieldContainer[float]
    baseline: _containers.RepeatedScalarFieldContainer[float]
    unit: Unit
    def __init__(self, fs_mhz: _Optional[int] = ..., leads: _Optional[_Iterable[str]] = ..., gain: _Optional[_Iterable[float]] = ..., baseline: _Optional[_Iterable[float]] = ..., unit: _Optional[_Union[Unit, str]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("stream_id", "session_id", "session_start_ns", "first_sample", "layout", "samples", "order", "last")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_START_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    session_id: str
    session_start_ns: int
    first_sample: int
    layout: Layout
    samples: bytes
    order: Order
    last: bool
    def __init__(self, stream_id: _Optional[str] = ..., session_id: _Optional[str] = ..., session_start_ns: _Optional[int] = ..., first_sample: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., samples: _Optional[bytes] = ..., order: _Optional[_Union[Order, str]] = ..., last: _Optional[bool] = ...) -> None: ...

class ChunkRecord(_message.Message):
    __slots__ = ("stream_id", "session_id", "session_start_ns", "first_sample", "layout", "samples", "order", "last")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_START_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    session_id: str
    session_start_ns: int
    first_sample: int
    layout: bytes
    samples: bytes
    order: Order
    last: bool
    def __init__(self, stream_id: _Optional[str] = ..., session_id: _Optional[str] = ..., session_start_ns: _Optional[int] = ..., first_sample: _Optional[int] = ..., layout: _Optional[bytes] = ..., samples: _Optional[bytes] = ..., order: _Optional[_Union[Order, str]] = ..., last: _Optional[bool] = ...) -> None: ...
