"""Names of backbones and their check."""

import subprocess
import sys

import pytest

from boxseg.config.backbones import BACKBONE_NAMES, check_backbone_name
from boxseg.errors import ConfigError
from boxseg.model.backbone import BACKBONES


def test_every_plain_name_can_be_built():
    assert tuple(BACKBONES) == BACKBONE_NAMES


def test_a_misspelt_name_is_refused_with_the_closest_one():
    with pytest.raises(ConfigError, match="'resnet5' is unknown; did you mean resnet50"):
        check_backbone_name("resnet5")


def test_timm_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="timm/NAME"):
        check_backbone_name("timm/")


def test_names_are_checked_without_torch():
    code = (
        "import sys, boxseg.config.backbones as n; "
        "n.check_backbone_name('timm/any'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
