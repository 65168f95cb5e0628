"""Odd values and damaged bytes for files that commands read, and the end that every command must come to."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from PIL import Image

from orchestration.cli.app import run

EXAMPLES = int(os.environ.get("BOXSEG_FUZZ_EXAMPLES", "15"))
"""Examples of each test; thousands take hours."""
MOST_SECONDS = 30
"""CPU time that a command may take for a few images of 8 px."""
SETTINGS = settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],
    deadline=None,
    derandomize="BOXSEG_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MARKS = {
    "@deep@": "[" * 90 + "]" * 90,
    "@too deep@": "[" * 950 + "]" * 950,
    "@digits@": "9" * 4000,
    "@too many digits@": "9" * 5000,
    "@book@": json.dumps("x" * 1_000_000),
    "@twice@": '{"id": 1, "id": 2}',
}
"""Texts that stand for what `json.dumps` does not write."""
NAMES = st.sampled_from(
    (
        *(
            "",
            ".",
            "..",
            "sub",
            "sub/new.png",
            "./a.png",
            "a.png/b",
            "../evil.png",
            "/evil.png",
            "sub/../../evil.png",
        ),
        *(
            "..\\evil.png",
            "C:\\evil.png",
            "a\0.png",
            "\ud800.png",
            "n" * 300,
            "a\n.png",
            "images",
            "[b]a.png",
        ),
        *("pipe", "/dev/stdin", "/dev/zero", "a\x1b[2J.png", "$\\frac$$"),
    )
)
NUMBERS = st.one_of(
    st.sampled_from(
        [0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, -1e308, 1e-320]
    ),
    st.floats(),
    st.integers(-5, 100),
)
VALUES = st.one_of(
    st.sampled_from(sorted(MARKS)),
    st.recursive(
        st.none() | st.booleans() | NUMBERS | NAMES,
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(NAMES | st.sampled_from(["size", "counts"]), inner)
        ),
        max_leaves=6,
    ),
)
DAMAGE = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4)), max_size=3)
"""Bytes, and where they replace others."""


def make_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with `deep/data/images`, two pictures and a pipe, and an empty `deep/down`, which we are in."""
    images = folder / "deep/data/images"
    (images / "sub").mkdir(parents=True)
    Image.linear_gradient("L").resize((12, 8)).convert("RGB").save(images / "a.png")
    Image.linear_gradient("L").resize((8, 12)).convert("RGB").save(images / "sub/b.jpg")
    os.mkfifo(images / "pipe")
    (folder / "deep/down").mkdir()
    monkeypatch.chdir(folder / "deep/down")
    return folder


def places_in(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value of JSON can be replaced: the way to each value within it."""
    inner = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in inner:
        yield (*way, key)
        yield from places_in(value, (*way, key))


def changes_of(content: Any) -> st.SearchStrategy[list[tuple[tuple[Any, ...], Any]]]:
    """Places in the content, and what to put there."""
    odd = VALUES | st.lists(NUMBERS, min_size=4, max_size=4)
    return st.lists(
        st.tuples(st.sampled_from(list(places_in(content))), odd), min_size=1, max_size=3
    )


def changed(content: Any, changes: list[tuple[tuple[Any, ...], Any]]) -> str:
    """The content with changes as JSON."""
    content = copy.deepcopy(content)
    for (*way, last), value in changes:
        target: Any = content
        # an earlier change took the place away
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for key in way:
                target = target[key]
            target[last] = value
    text = json.dumps(content)
    for mark, value in MARKS.items():
        text = text.replace(json.dumps(mark), value)
    return text


def damaged(data: bytes, damage: list[tuple[int, bytes]]) -> bytes:
    """Bytes with some replaced by others, or more of them."""
    for start, replacement in damage:
        start %= max(len(data), 1)
        data = data[:start] + replacement + data[start + 2 :]
    return data


def files(root: Path) -> dict[str, bytes | str]:
    """What lies below a folder, apart from the output of commands."""
    return {
        str(path): path.read_bytes()
        if path.is_file()
        else "link"
        if path.is_symlink()
        else "folder or pipe"
        for path in root.rglob("*")
        if "out" not in path.relative_to(root).parts
    }


@contextlib.contextmanager
def untouched(root: Path) -> Iterator[None]:
    """Nothing below a folder changes, but for `out`, which is then removed."""
    before = files(root)
    yield
    assert files(root) == before
    shutil.rmtree("out", ignore_errors=True)


def end_of(arguments: list[str], codes: tuple[int, ...] = (0, 2, 3)) -> int:
    """Exit code of a command, which must be one that it chose: done, wrong use, or faulty data; within a time."""
    told = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    shown = io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict, as the real one
    began = time.process_time()
    with (
        contextlib.redirect_stderr(told),
        contextlib.redirect_stdout(shown),
    ):
        code = run(arguments)
        told.flush()
    message = told.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert code in codes, message
    assert "\x1b" not in message
    assert time.process_time() - began < MOST_SECONDS
    return code
