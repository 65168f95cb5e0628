"""Settings under one name: profiles, which say whose method it is, and methods, which say what parts of it are on."""

from __future__ import annotations

from typing import Any, Literal

Profile = Literal["official", "paper", "fixed"]
Method = Literal["boxinst", "boxteacher", "qam", "pc", "full", "supervised"]


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A new nested dict with the entries of both; `over` wins where both have a value.

    >>> merge({"qam": {"k_top": 5, "fusion": "vote"}}, {"qam": {"k_top": 10}})
    {'qam': {'k_top': 10, 'fusion': 'vote'}}
    """
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


RELEASED: dict[str, Any] = {
    "data": {"strong": "strong"},
    "model": {"norm_groups": 32},
    "solver": {"warmup": 1000},
    "teacher": {"resize_short": 800, "nms_overwrite": True},
    "qam": {
        "filter_first": False,
        "full_resolution": True,
        "fusion": "vote",
        "color_weight": 0.0,
        "need_inside": False,
    },
    "loss": {"warmup": 10_000, "mask_weight": 0.5},
    "boxinst": {"warmup": 10_000, "bottom_px": 10, "truncate_colors": True},
    "pc": {
        "p_start": 1.0,
        "p_end": 0.3,
        "warmup": 10_000,
        "overlap": 0.1,
        "per_image": 1,
        "placements": 1,
        "target": "random",
        "paste_weak": False,
        "require_better": False,
        "bank": "images",
        "relative_limits": False,
        "keep_sides": False,
        "drop_slivers": False,
    },
    "ema": {"max_lag": None, "average_buffers": False},
    "fcos": {"iou_eps": 1.0},
}
"""The released code with its quirks, which docs/profiles.md explains one by one."""

AS_REPORTED: dict[str, Any] = {
    "qam": {"fusion": "weighted", "adaptive_k": True},
    "pc": {"target": "lowest-q", "require_better": True},
}
"""Where the paper is reported to differ from the released code."""

PROFILES: dict[Profile, dict[str, Any]] = {
    "official": RELEASED,
    "paper": merge(RELEASED, AS_REPORTED),
    "fixed": {},
}
"""What each profile changes on top of the field defaults, which are those of `fixed`."""

METHODS: dict[Method, dict[str, Any]] = {
    "boxinst": {
        "teacher": {"on": False},
        "loss": {"mask_weight": 0.0, "aff_weight": 0.0, "warmup": 0},
        "pc": {"on": False},
    },
    "boxteacher": {"teacher": {"with_nms": True}, "pc": {"on": False}},
    "qam": {"pc": {"on": False}},
    "pc": {"teacher": {"with_nms": True}},
    "full": {},
    "supervised": {
        "data": {"use_masks": "where_present"},
        "teacher": {"on": False},
        "loss": {"mask_weight": 1.0, "aff_weight": 0.0, "warmup": 0},
        "boxinst": {"projection_weight": 0.0, "pairwise_weight": 0.0},
        "pc": {"on": False},
    },
}
"""What each method changes on top of the profile; classification loss and schedule stay the same for all."""


def apply_presets(values: dict[str, Any]) -> dict[str, Any]:
    """Lay profile, then method, under the given settings; explicit settings win.

    Presets of an unknown profile or method are empty here: validation names the mistake.
    """
    profile, method = values.get("profile", "fixed"), values.get("method", "full")
    # Not yet validated, so they can be of any kind.
    of_profile = PROFILES[profile] if isinstance(profile, str) and profile in PROFILES else {}
    of_method = METHODS[method] if isinstance(method, str) and method in METHODS else {}
    return merge(merge(of_profile, of_method), values)
