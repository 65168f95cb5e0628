"""With any content of the files of runs and experiments, commands end with a message, and show all sound ones.

Hypothesis puts values that nobody would write at any place of a record, and damages its bytes.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestration.cli.app import run
from orchestration.config.explain import setting_names
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.errors import ExitCode
from orchestration.record import records
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.tracking.tracker import Tracker

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "30"))
FUZZ = settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(FUZZ, max_examples=max(EXAMPLES // 5, 1))
"""For what looks at all commands, or draws."""
SWEEP = "20260101-000000-aaaaaa"
TRIAL = f"{SWEEP}-00"

NUMBERS = st.one_of(
    st.sampled_from(
        [
            0,
            -1,
            2**31,
            2**63,
            10**30,
            10**400,
            0.5,
            -0.0,
            1e308,
            1e-320,
            float("nan"),
            float("inf"),
        ]
    ),
    st.floats(),
    st.integers(-5, 100),
)
NAMES = st.sampled_from(
    [
        "",
        ".",
        "..",
        "../up",
        "a/b",
        "a\0b",
        "\x1b[31m",
        "n" * 300,
        "a\nb",
        "$\\frac$",
        "~x",
        "é",
        "1e9",
        "on",
        "[b]",
        "a: b",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=6,
)
DAMAGE = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4)), max_size=3)
"""Bytes, and where they replace others."""


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def damaged(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    for place, new in changes:
        place %= len(content) + 1
        content = content[:place] + new + content[place + 2 * len(new) :]
    return content


@st.composite
def odd(draw: st.DrawFn, sound: dict[str, Any]) -> bytes:
    """A record with other values at some of its places, or damaged bytes, or something else."""
    if draw(st.integers(0, 4)) == 0:
        return to_json(draw(VALUES)) if draw(st.booleans()) else draw(st.binary(max_size=40))
    changed = sound | draw(st.dictionaries(st.sampled_from([*sound, "other"]), VALUES, max_size=3))
    return damaged(to_json(changed), draw(DAMAGE))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, and a sweep with two trials; commands start in the folder above."""
    monkeypatch.chdir(tmp_path)
    storage = tmp_path / "runs"
    few = {"toy": {"train_images": 2, "val_images": 2, "size": 64}}
    experiment = {"name": "toy", "storage": storage, "data": few, "train": {"steps": 9}}
    spec = SweepSpec.model_validate(
        experiment | {"sweep": {"space": {"qam.k_top": {"choice": [1, 2, 3]}}}}
    )
    Path("exp.yaml").write_text(dump_resolved(RunSpec.model_validate(experiment)))
    Path("sweep.yaml").write_text(dump_resolved(spec))
    for run_id in ("good", "odd"):
        make(storage / "toy" / run_id, dump_resolved(RunSpec.model_validate(experiment)))
    make(storage / "toy" / SWEEP, dump_resolved(spec), kind="sweep", best_run=TRIAL)
    for number in range(2):
        tags = {"trial": str(number), "seed": "0"}
        folder = make(
            storage / "toy" / SWEEP / f"{SWEEP}-{number:02d}",
            dump_resolved(RunSpec.model_validate(experiment)),
            parent="..",
            tags=tags,
            values={"qam.k_top": number + 1},
        )
        RunFolder(storage / "toy" / SWEEP).note(
            "trial_drawn", number=number, values=folder.stored().values, seed=0
        )
    return storage


def make(path: Path, config: str, **changes: Any) -> RunFolder:
    metrics = {"val/mask_ap": 0.5, "train/loss": 1.0}
    times = {"created": 1.0, "started": 1.0, "ended": 9.0}
    steps = {"steps": 9, "step": 9, "best_step": 9}
    about = (
        times | steps | {"status": "interrupted", "metrics": metrics, "best": metrics} | changes
    )
    status = RunStatus(path.name, "toy", **about)
    folder = RunFolder(path).create(status, config)
    folder.append_metrics(9, metrics)
    return folder


def call(*arguments: str) -> str:
    """Run a command that must end with a message or a result; gives its stdout."""
    records._warned.clear()
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = run(list(arguments))
    assert "(unexpected; " not in errors.getvalue(), (arguments, errors.getvalue())
    assert code in set(ExitCode), (arguments, errors.getvalue())
    assert code == ExitCode.DONE or errors.getvalue(), arguments
    assert not any(
        ord(letter) < 32 and letter != "\n" for letter in output.getvalue() + errors.getvalue()
    )
    return output.getvalue()


@contextlib.contextmanager
def nothing_trained() -> Iterator[None]:
    """`train` and `sweep` do all that comes before the first step."""
    with (
        mock.patch("orchestration.execute.run.supervise"),
        mock.patch("orchestration.execute.run.provenance", return_value={}),
    ):
        yield


def look_at_everything(odd_run: str) -> None:
    """Commands that read records: other runs are shown with any content of the odd one."""
    listed = {each["id"] for each in json.loads(call("runs", "ls", "--json"))}
    assert {"good", f"{SWEEP}-01"} <= listed
    for arguments in (["show", odd_run], ["show", f"best:{SWEEP}"], ["compare", "good", odd_run]):
        call("runs", *arguments)
    call("train", "exp.yaml", "--plan")
    with nothing_trained():
        call("train", "exp.yaml", "--resume", odd_run)


STATUS = asdict(
    RunStatus(
        "odd",
        "toy",
        status="interrupted",
        created=1.0,
        started=1.0,
        ended=9.0,
        step=9,
        steps=9,
        best_step=9,
    )
) | {
    "failure": {"kind": "DataError", "text": "bad"},
    "pid": 1,
    "tags": {"host": "here", "data_fingerprint": "ab"},
}


TAGS = {"trial": "0", "seed": "0"}


@FEW
@given(content=odd(STATUS))
def test_any_status(storage: Path, content: bytes):
    (storage / "toy" / "odd" / "status.json").write_bytes(content)
    look_at_everything("odd")


@FEW
@given(
    content=odd(STATUS | {"id": TRIAL, "parent": "..", "values": {"qam.k_top": 1}, "tags": TAGS})
)
def test_any_status_of_a_trial(storage: Path, content: bytes):
    (storage / "toy" / SWEEP / TRIAL / "status.json").write_bytes(content)
    call("report", SWEEP)
    call("runs", "show", SWEEP)
    look_at_everything(TRIAL)


@FEW
@given(lines=st.lists(odd({"step": 9, "time": 5.0, "metrics": {"val/mask_ap": 0.5}}), max_size=4))
def test_any_lines_of_metrics(storage: Path, lines: list[bytes]):
    folder = RunFolder(storage / "toy" / SWEEP / TRIAL)
    folder.metrics_path.write_bytes(b"\n".join(lines) + b"\n")
    folder.append_metrics(10, {"val/mask_ap": 0.25})
    assert folder.history("val/mask_ap")[-1] == (10, 0.25) or folder.reports()[-1].step == 10
    call("report", SWEEP)


@FUZZ
@given(
    lines=st.lists(
        odd({"event": "trial_drawn", "number": 2, "values": {"qam.k_top": 3}, "seed": 0}),
        max_size=4,
    )
)
def test_any_lines_of_the_journal(storage: Path, lines: list[bytes]):
    from orchestration.record.journal import is_concluded, read_past

    folder = RunFolder(storage / "toy" / SWEEP)
    sound = folder.journal_path.read_bytes()
    folder.journal_path.write_bytes(sound + b"\n".join(lines) + b"\n")
    records._warned.clear()
    spec = SweepSpec.model_validate({"sweep": {"space": {"qam.k_top": {"choice": [1, 2, 3]}}}})
    assert {0, 1} <= {past.number for past in read_past(folder, spec.sweep)}
    assert not is_concluded(folder) or any(b"sweep_end" in line for line in lines)
    folder.journal_path.write_bytes(sound)


TRACKING = {"uri": "sqlite:///x", "run_id": "ab", "described": True, "offset": 7}
TRACKING |= {"files": {"a": "b"}, "ended": ["failed", 9.0]}


@FEW
@given(content=odd(TRACKING))
def test_any_note_about_tracking(storage: Path, content: bytes):
    odd_run, good = (RunFolder(storage / "toy" / name) for name in ("odd", "good"))
    for folder in (odd_run, good):
        folder.write_tracking({"uri": "sqlite:///x"})
    odd_run.tracking_path.write_bytes(content)
    tracker = Tracker(storage, "toy", uri="sqlite:///x", logs=storage / "logs")
    with mock.patch.object(Tracker, "_open", return_value=mock.MagicMock()):
        tracker.copy_leftovers()
    assert good.read_tracking()["ended"] == ["interrupted", 9.0]
    look_at_everything("odd")


LINES = dump_resolved(RunSpec()).splitlines()
NAMED = [
    name for name in setting_names(SweepSpec) if name not in ("storage", "data.train", "data.val")
]
"""Settings whose odd values do no harm to the folders of this machine."""


@FEW
@given(lines=st.lists(st.sampled_from(LINES) | st.text(max_size=12), max_size=3), changes=DAMAGE)
def test_any_settings_of_a_run(storage: Path, lines: list[str], changes: list[tuple[int, bytes]]):
    path = storage / "toy" / "odd" / "config.yaml"
    path.write_bytes(
        damaged("\n".join([*LINES, *lines]).encode("utf-8", "surrogatepass"), changes)
    )
    call("train", "--from-run", "odd", "--plan")
    look_at_everything("odd")


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(NAMED), VALUES, max_size=4), damage=DAMAGE)
def test_any_experiment_file(
    storage: Path, changes: dict[str, Any], damage: list[tuple[int, bytes]]
):
    nested: dict[str, Any] = {}
    for name, value in changes.items():
        group, _, last = name.rpartition(".")
        nested.setdefault(group, {})[last] = value
    content = {
        **nested.pop("", {}),
        **{group: values for group, values in nested.items() if "." not in group},
    }
    Path("odd.yaml").write_bytes(damaged(to_json(content), damage))
    for arguments in (
        ["config", "show", "odd.yaml"],
        ["train", "odd.yaml", "--plan"],
        ["sweep", "odd.yaml", "--plan"],
    ):
        call(*arguments)


@FUZZ
@given(
    name=st.sampled_from(NAMED) | st.text(max_size=8),
    value=VALUES.map(json.dumps) | st.text(max_size=12) | NAMES,
    equals=st.sampled_from(["=", "", "==", ":"]),
)
def test_any_override(storage: Path, name: str, value: str, equals: str):
    for command in ("train", "sweep"):
        call(
            command,
            f"{command.replace('train', 'exp')}.yaml",
            f"--set={name}{equals}{value}",
            "--plan",
        )
