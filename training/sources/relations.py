"""What a statement says about others. An annotator who states the specific finding often leaves the general one out.

Such an unstated general label is no negative: it is positive where the words entail it, unknown otherwise. Keys are label ids,
or "scp:CODE" for a code without a label of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ENTAILS", "LEAVES_OPEN", "RHYTHMS", "complete"]

# statements of the basic rhythm: a record that names none of them says nothing about any of them
RHYTHMS = frozenset(
    (
        *("SR", "SBRAD", "STACH", "SARRH", "AFIB", "AFIB_RVR", "AFIB_SVR", "AFLT", "ATACH", "SVT", "PSVT", "AVNRT", "AVRT"),
        *("JTACH", "AJR", "JRHY", "EAR", "WAP", "AAER", "VT", "VFL", "VF", "TDP", "ASYS", "AIVR", "IVR", "VESC_R"),
        *("PACE", "APACE", "VPACE"),
    )
)

# specific -> general, by the meaning of the words
ENTAILS: dict[str, tuple[str, ...]] = {
    **{region: ("ISC",) for region in ("ISC_AL", "ISC_AS", "ISC_IL", "ISC_ANT", "ISC_INF", "ISC_LAT")},
    **{region: ("MI_INF",) for region in ("MI_IL", "MI_IP", "scp:IPLMI")},
}

# stated -> labels that may be meant with it, or not: their absence from the statements says nothing
LEAVES_OPEN: dict[str, tuple[str, ...]] = {
    "MI_AS": ("MI_ANT",),
    "MI_AL": ("MI_ANT", "MI_LAT"),
    "MI_IL": ("MI_LAT",),
    "MI_IP": ("MI_POST",),
    "scp:IPLMI": ("MI_LAT", "MI_POST", "MI_IL", "MI_IP"),
    "ISC_AL": ("ISC_ANT", "ISC_LAT"),
    "ISC_AS": ("ISC_ANT",),
    "ISC_IL": ("ISC_INF", "ISC_LAT"),
    "TINV": ("TAB", "NSSTT"),
    "TFLAT": ("TAB", "NSSTT"),
    "TAB": ("NSSTT",),
    "STE": ("NSSTT",),  # PTB-XL's STE_ and STD_ are "non-specific" too
    "STD": ("NSSTT",),
    "LVHV": ("HVOLT",),
    "LPR": ("AVB1",),
    "AVB1": ("LPR",),
    "AVB2_W": ("AVB2",),
    "AVB2_M2": ("AVB2",),
    "PSVT": ("SVT",),
    "AFIB_RVR": ("AFIB",),
    "APACE": ("PACE",),
    "VPACE": ("PACE",),
    **{beats: ("PVC",) for beats in ("PVC_COUP", "VBIG", "VTRIG")},
    **{beats: ("SVPC",) for beats in ("SVBIG", "SVPC_BLK")},
    **{f"scp:{code}": ("SVPC", "PVC") for code in ("PRC(S)", "BIGU", "TRIGU")},  # ectopic beats of unnamed origin
    "scp:SVARR": tuple(sorted(RHYTHMS)),  # an arrhythmia without its name
}


def complete(stated: Iterable[str], uncertain: Iterable[str] = (), rhythm_asked: bool = False) -> tuple[set[str], set[str]]:
    """stated, uncertain: label ids and "scp:CODE" -> positive, unknown: label ids, disjoint.

    Without a stated rhythm every rhythm is unknown, unless the source was asked for the rhythm in every record.
    """
    positive, unknown = set(stated), set(uncertain)
    for name in tuple(positive):
        unknown.update(LEAVES_OPEN.get(name, ()))
        positive.update(ENTAILS.get(name, ()))
    for name in tuple(uncertain):
        unknown.update((*LEAVES_OPEN.get(name, ()), *ENTAILS.get(name, ())))
    if not rhythm_asked and not positive & RHYTHMS:
        unknown |= RHYTHMS
    positive = {name for name in positive if ":" not in name}
    return positive, {name for name in unknown if ":" not in name} - positive
