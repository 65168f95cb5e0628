"""Links of the documentation lead somewhere, and the commands it names exist."""

import doctest
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestration.cli.app import run

ROOT = Path(__file__).parents[1]
CODE = ("boxseg", "orchestration", "tests", "experiments", "benchmarks", "docs")
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docker/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in its links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_sections(page):
    targets = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    missing = [
        f"{file}#{name}"
        for file, name in targets
        if name not in anchors(page.parent / file if file else page)
    ]
    assert missing == []


def test_the_numbers_of_the_method_are_those_of_the_code():
    text = (ROOT / "docs/method.md").read_text()
    names: dict[str, object] = {}
    runner, report = doctest.DocTestRunner(verbose=False), []
    # One block after the other, as the line that ends a block is no output; later ones use the names of earlier ones.
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text[: block.start()].count("\n") + 1
        example = doctest.DocTestParser().get_doctest(
            block[1], {}, "method.md", "docs/method.md", line
        )
        example.globs = names
        runner.run(example, out=report.append, clear_globs=False)
    assert runner.tries > 50
    assert runner.failures == 0, "".join(report)


def test_code_points_to_sections_of_the_method():
    files = [
        file
        for folder in CODE
        for kind in ("*.py", "*.md", "*.yaml")
        for file in (ROOT / folder).rglob(kind)
    ]
    mentions = [
        (file, *mention)
        for file in [ROOT / "README.md", *files]
        for mention in re.findall(
            r"([\w/]*)\bmethod\.md`?(#[\w-]*)?( sections? \(| \([a-z])?", file.read_text()
        )
        if file not in (Path(__file__), ROOT / "docs/method.md")
    ]
    sections = anchors(ROOT / "docs/method.md")
    named = [(file, anchor.removeprefix("#")) for file, _, anchor, _ in mentions if anchor]
    assert len(named) > 50
    assert [(file.name, name) for file, name in named if name not in sections] == []
    # Letters and numbers of sections mean nothing to a reader; the page as a whole may be named.
    assert [file.name for file, _, _, letter in mentions if letter] == []
    # The path is that from the root, save in links from one page to another.
    assert [
        file.name
        for file, folder, anchor, _ in mentions
        if anchor and folder != ("" if file.parent == ROOT / "docs" else "docs/")
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_experiments_that_are_named_exist(page):
    named = re.findall(r"experiments/(\w+\.yaml)", page.read_text())
    assert [name for name in named if not (ROOT / "experiments" / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_are_run_by_name_can_be_found(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    named = re.findall(r"python3? -m ([\w.]*\w)", page.read_text())
    assert [name for name in named if find_spec(name) is None] == []


def test_tests_that_show_a_fault_exist():
    named = set(re.findall(r"`([\w/]*test_\w+\.py)`", (ROOT / "docs/reliability.md").read_text()))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).exists()] == []


def test_every_command_of_the_readme_has_help(capsys):
    named = {
        line.split()[1].strip("`|")
        for line in re.findall(r"boxseg \w+[^\n]*", (ROOT / "README.md").read_text())
    }
    known = named & {"sweep", "train", "data", "runs", "ui", "config"}
    assert len(known) == 6
    for command in known:
        assert run([command, "--help"]) == 0


def test_the_map_names_what_is_there():
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = {
        path.parent.name
        for package in ("boxseg", "orchestration")
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == rooms
    for path, name in re.findall(r"(\w+/\w+\.py)(?: (\w+)`)?", text):
        modules = [ROOT / package / path for package in ("boxseg", "orchestration", "")]
        module = next((module for module in modules if module.is_file()), None)
        assert module is not None, path
        assert not name or re.search(
            rf"^(def|class) {name}\b", module.read_text(), re.MULTILINE
        ), f"{path} {name}"


def test_messages_and_pages_install_extras_with_the_versions_that_work_together():
    places = [*PAGES, *ROOT.glob("boxseg/**/*.py"), *ROOT.glob("orchestration/**/*.py")]
    for place in places:
        for command in re.findall(r"pip install.*\[[a-z]+\]'", place.read_text()):
            assert "-c constraints.txt" in command, place
