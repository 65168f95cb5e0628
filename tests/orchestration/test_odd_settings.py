"""Odd experiment files and values of `--set` are refused quickly, with place and way out."""

import os
import time
from pathlib import Path

import pytest

from boxseg.errors import ConfigError
from orchestration.cli.app import run
from orchestration.config.resolved import dump_resolved, parse_resolved, read_resolved
from orchestration.config.source import read_source
from orchestration.config.spec import RunSpec, load_run, load_sweep
from orchestration.errors import ExitCode
from orchestration.record.run_folder import RunFolder, RunStatus

ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghij", "bcdefghijk", strict=True)
)
"""Nine to the power of eleven values in eleven lines."""


def grid(settings: int, values: int) -> str:
    lines = [
        f"    qam.k_top{number}: {{choice: {list(range(values))}}}\n" for number in range(settings)
    ]
    return "sweep:\n  search: grid\n  space:\n" + "".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES, "the file has more than 50000 values with all aliases written out"),
        ("qam: " + "[" * 100_000, "exp.yaml:1: nested too deeply"),
        ("{a: " * 5000 + "}" * 5000, "exp.yaml:1: nested too deeply"),
        ("- " * 5000, "exp.yaml:1: nested too deeply"),
        ("".join(" " * depth + "a:\n" for depth in range(200)), "exp.yaml:30: nested too deeply"),
        (
            "train: {steps: " + "9" * 5000 + "}",
            "exp.yaml:1: train.steps has 5000 digits; whole numbers have 18",
        ),
        (
            "name: x\nstorage: a\x00b",
            "exp.yaml:2: holds the character U+0000, which YAML does not allow",
        ),
        ("name: a\x1b[31mb", "exp.yaml:1: holds the character U+001B"),
        ('name: "a\\e[31mb"', "exp.yaml:1: name holds the character U+001B, which no setting can"),
        ('storage: "\\ud800"', "exp.yaml:1: storage holds the character U+D800"),
        ('"\\e": 1', "exp.yaml:1: a setting's name must be a word"),
        (
            "name: " + "a" * 5000,
            "exp.yaml:1: name has 5000 characters; settings have 4096 at most",
        ),
        ("name: !!int word", "exp.yaml:1: name is not of the kind int"),
        ("name: !!bool maybe", "exp.yaml:1: name is not of the kind bool"),
        ("name: !!timestamp word", "exp.yaml:1: name is not of the kind timestamp"),
        (
            "name: !!timestamp 2001-01-01",
            "exp.yaml:1: name is a date, and settings are numbers, words and lists",
        ),
        ("name: !!binary YWJj", "exp.yaml:1: name is a bytes"),
        ("qam: {<<: 3}", "exp.yaml:1: << takes over the settings of a group, and this is none"),
        ("qam: {<<: [3]}", "exp.yaml:1: << takes over the settings of a group, and this is none"),
        (
            "storage: ~nobody-here/runs",
            "exp.yaml:1: storage is ~nobody-here/runs, the home of an unknown user",
        ),
        ('storage: ""', "exp.yaml:1: storage is empty; name a path, or leave the setting out"),
        (
            "name: 'x",
            "exp.yaml:1: not valid YAML: while scanning a quoted scalar, found end of stream",
        ),
        ("base: exp.yaml", "exp.yaml:1: base exp.yaml leads back to itself"),
        (
            "".join(f"a{number}: 1\n" for number in range(5000)),
            "exp.yaml: 4980 more settings are wrong",
        ),
        (
            "#" * 300_000,
            "exp.yaml: cannot be read (it has 300000 bytes, and at most 262144 are allowed)",
        ),
        (
            grid(12, 100),
            "the sweep has 1e+24 (settings times seeds), and at most 1000000 are allowed",
        ),
        (grid(1, 1001), "a list of at most 1000 values"),
        (
            "sweep: {trials: 100000000000, space: {qam.iou_thr: {uniform: [0, 1]}}}",
            "at most 1000000 are allowed",
        ),
    ],
    ids=lambda value: value[:20],
)
def test_odd_yaml_is_refused_in_a_moment(tmp_path: Path, text: str, words: str):
    path = tmp_path / "exp.yaml"
    path.write_text(text, encoding="utf-8")
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        (load_sweep if "sweep:" in text else load_run)(path)
    assert words in str(caught.value)
    assert time.process_time() - began < 10


def test_anything_but_a_plain_file_is_refused_without_waiting(tmp_path: Path):
    for name, make, kind in (
        ("pipe", os.mkfifo, "a pipe"),
        ("folder", Path.mkdir, "a folder"),
        ("zero", lambda path: path.symlink_to("/dev/zero"), "a device"),
    ):
        make(tmp_path / name)
        with pytest.raises(
            ConfigError, match=rf"{name}: cannot be read \(it is {kind}, not a file\)"
        ):
            load_run(tmp_path / name)
        (tmp_path / "exp.yaml").write_text(f"base: {name}")
        with pytest.raises(
            ConfigError, match=rf"{name}: cannot be read \(it is {kind}, not a file\)"
        ):
            load_run(tmp_path / "exp.yaml")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str):
    (tmp_path / "exp.yaml").write_bytes("name: ä".encode(encoding))
    with pytest.raises(ConfigError, match=r"not UTF-8 text, byte \d\); save it as UTF-8|U\+0000"):
        load_run(tmp_path / "exp.yaml")


def test_a_mark_of_byte_order_is_no_fault(tmp_path: Path):
    (tmp_path / "exp.yaml").write_bytes(b"\xef\xbb\xbfname: qam\r\ntrain: {steps: 3}\r\n")
    assert load_run(tmp_path / "exp.yaml").train.steps == 3


def test_a_long_chain_of_files_is_read_to_its_end(tmp_path: Path):
    for number in range(50):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml")
    (tmp_path / "50.yaml").write_text("name: last")
    assert load_run(tmp_path / "0.yaml").name == "last"


def test_a_folder_of_many_files_is_not_listed_as_a_whole(tmp_path: Path):
    for number in range(30):
        (tmp_path / f"{number:02d}.yaml").touch()
    with pytest.raises(ConfigError, match=r"has: 00\.yaml, .*09\.yaml and 20 more"):
        load_run(tmp_path / "exp.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (".".join("a" * 100) + "=1", "names 100 groups in a row"),
        ("train.steps=" + "9" * 5000, "--set train.steps: train.steps has 5000 digits"),
        ("name=a\x00b", "--set name: holds the character U+0000"),
        ("name=\udcff", "--set name: holds the character U+DCFF"),
        ("qam=" + "{a: " * 100, "--set qam: nested too deeply"),
        ("storage=", "--set storage=: has no value"),
        ("data.train={images: '', annotations: x}", "data.train.images is empty"),
        ("name=&a [*a]", "--set name: nested too deeply"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_an_odd_override_is_refused(tmp_path: Path, override: str, words: str):
    (tmp_path / "exp.yaml").write_text("name: x")
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path / "exp.yaml", [override])
    assert words in str(caught.value)


DAMAGED = [
    "",
    "null",
    "[]",
    "5",
    "name: 'x",
    "name: [",
    "\x00",
    ALIASES,
    "[" * 100_000,
    "train: {steps: many}",
]
DAMAGED += [
    "5: 3",
    "train: 3",
    "sweep: 3\nname: x",
    "train: {steps: " + "9" * 5000 + "}",
    "name: 2001-99-99",
    "x: !!bool a",
]
"""Texts that are no settings of a run."""


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: ascii(text)[:20])
def test_a_run_with_damaged_settings_is_not_resumed_and_says_why(
    tmp_path: Path, monkeypatch, capsys, text: str
):
    monkeypatch.chdir(tmp_path)
    Path("exp.yaml").write_text(
        "name: toy\ntrain: {steps: 2, batch_size: 1}\ndata: {toy: {train_images: 1, val_images: 1}}\n"
    )
    folder = RunFolder(tmp_path / "runs" / "toy" / "one")
    folder.create(RunStatus("one", "toy", status="interrupted"), text)
    for damage in (lambda: None, folder.config_path.unlink, folder.config_path.mkdir):
        damage()
        assert run(["train", "exp.yaml", "--resume", "one"]) == ExitCode.USAGE
        told = capsys.readouterr().err
        assert "one/config.yaml" in told
        assert "or start a new" in told
        assert run(["runs", "compare", "one", "one"]) in (ExitCode.USAGE, ExitCode.DONE)
        assert run(["train", "--from-run", "one", "--plan"]) in (ExitCode.USAGE, ExitCode.DONE)
        assert "unexpected" not in capsys.readouterr().err


def test_settings_are_written_without_aliases(tmp_path: Path):
    same = [1, 2]
    text = dump_resolved(RunSpec()) + "".join(["a: ", str(same), "\n"])
    assert "&" not in text
    assert parse_resolved(text)["a"] == same
    with pytest.raises(ConfigError, match=r"config\.yaml: is missing; put a copy back"):
        read_resolved(tmp_path / "config.yaml")


def test_a_group_takes_over_another_with_a_merge_key(tmp_path: Path):
    path = tmp_path / "exp.yaml"
    path.write_text(
        "qam: &one\n"  # 1
        "  k_top: 3\n"
        "  iou_thr: 0.4\n"
        "sweep:\n"  # 4
        "  settings:\n"
        "    first: &two {qam.k_top: 4, qam.score_thr: 0.2}\n"
        "    second:\n"  # 7
        "      <<: [*two, {qam.k_top: 9, qam.iou_thr: 0.6}]\n"
        "      qam.score_thr: 0.1\n"
    )
    source = read_source(path)
    second = source.values["sweep"]["settings"]["second"]
    # The first of a list of groups wins over the others, and the group's own settings over all.
    assert second == {"qam.k_top": 4, "qam.iou_thr": 0.6, "qam.score_thr": 0.1}
    place = ("sweep", "settings", "second")
    assert source.places[(*place, "qam.k_top")] == f"{path}:6"
    assert source.places[(*place, "qam.iou_thr")] == f"{path}:8"
    assert source.places[(*place, "qam.score_thr")] == f"{path}:9"


def test_values_replaced_after_a_merge_do_not_keep_their_line(tmp_path: Path):
    path = tmp_path / "exp.yaml"
    path.write_text("a: &a\n  inner: {x: 1, y: 2}\nb:\n  <<: *a\n  inner: {x: 3}\n")
    source = read_source(path)
    assert source.values["b"] == {"inner": {"x": 3}}
    assert source.places[("b", "inner", "x")] == f"{path}:5"
    assert ("b", "inner", "y") not in source.places
