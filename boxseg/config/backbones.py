"""The names of the backbones; importable without torch."""

from __future__ import annotations

from difflib import get_close_matches

from boxseg.errors import ConfigError

BACKBONE_NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet18_half",
    "efficientnet_lite0",
)
"""Backbones that go by a plain name; `timm/NAME` stands for any timm feature extractor."""


def check_backbone_name(name: str) -> None:
    """Raise ConfigError unless `name` is a known plain name, or `timm/` and something."""
    if name in BACKBONE_NAMES or (name.startswith("timm/") and len(name) > len("timm/")):
        return
    close = get_close_matches(name, BACKBONE_NAMES, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(
        f"model.backbone: {name!r} is unknown; {hint}choose {', '.join(BACKBONE_NAMES)} or timm/NAME"
    )
