"""The examples in docstrings run and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules_with_examples() -> list[str]:
    names = []
    for package in ("boxseg", "orchestration"):
        for file in sorted((ROOT / package).rglob("*.py")):
            if ">>>" in file.read_text():
                names.append(".".join(file.relative_to(ROOT).with_suffix("").parts))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_print_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name), extraglobs={}, report=True)
    assert result.attempted > 0
    assert result.failed == 0
