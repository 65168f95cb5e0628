"""`boxseg ui` over a sweep: what it prints, what a browser shows, whom it refuses, and that nothing is left of it."""

import functools
import http.client
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from browser import Browser, open_browser
from faulty_proxy import free_port
from synthetic import SPACE, write_sweep

from boxseg.config.method import ToyConfig
from boxseg.data.dataset import CocoBoxes
from boxseg.data.toy import ensure_toy
from boxseg.evaluation.panels import PanelRow, draw_panels
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import SweepSpec
from orchestration.record.run_folder import RunFolder
from orchestration.tracking.store import tracking_uri

pytestmark = pytest.mark.slow

TRIALS = 12


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    """A sweep whose driver was killed before MLflow heard of it, and a panel of toy pictures in its first trial."""
    storage = tmp_path_factory.mktemp("storage")
    sweep = write_sweep(storage, settings=TRIALS)
    spec = SweepSpec.model_validate(yaml.safe_load((sweep / "config.yaml").read_text()))
    for path in [sweep / "status.json", *sweep.glob("*/status.json")]:
        folder = RunFolder(path.parent)
        folder.write_tracking({"uri": tracking_uri(storage)})
        if folder.path != sweep:
            status = folder.stored()
            folder.config_path.write_text(dump_resolved(spec.trial(status.values, 0)))
    draw_toy_panel(storage, sweep / "s-00" / "samples" / "step-00000240.png")
    return storage


def draw_toy_panel(storage: Path, path: Path) -> None:
    _, val = ensure_toy(storage / ".data", ToyConfig(train_images=2, val_images=3, size=128))
    data = CocoBoxes(val, train=False)
    samples = [data[index] for index in range(len(data))]
    masks = [data.drawn_masks(index).mask for index in range(len(data))]
    ones = [sample.labels.float() * 0 + 0.9 for sample in samples]
    rows = [
        PanelRow(s.image, s.boxes, m, q, m, q)
        for s, m, q in zip(samples, masks, ones, strict=True)
    ]
    draw_panels(rows, path)


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    port: int
    experiment: str
    """Address that the command printed."""
    comparison: str


@pytest.fixture(scope="module")
def served(storage) -> Iterator[Served]:
    """The command as a process of its own; it ends with Ctrl-C."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "orchestration.cli",
        "ui",
        "--storage",
        str(storage),
        "--port",
        str(port),
    ]
    # Where the tests themselves run in the background, Ctrl-C is ignored, and children inherit that.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(2)]
    assert [line[:-1] for line in lines] == [["experiment"], ["last", "sweep"]]
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    yield Served(process, port, lines[0][-1], lines[1][-1])
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not [
        each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def visit(browser: Browser, url: str) -> None:
    """Load a page anew; MLflow's addresses differ behind the # alone, which loads nothing."""
    browser.open("about:blank", width=1600)
    browser.open(url, width=1600)


def answer(served: Served, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request(
        "GET", "/api/2.0/mlflow/experiments/get?experiment_id=1", headers={"Host": host}
    )
    return connection.getresponse().status


def test_only_requests_that_name_this_machine_are_answered(served):
    assert answer(served, f"127.0.0.1:{served.port}") == 200
    assert answer(served, f"localhost:{served.port}") == 200
    for foreign in ("example.org", f"example.org:{served.port}", "192.168.0.7"):
        assert answer(served, foreign) == 403
    family = psutil.Process(served.process.pid).children(recursive=True)
    listening = [
        each for process in family for each in process.net_connections() if each.status == "LISTEN"
    ]
    assert {each.laddr.ip for each in listening} == {"127.0.0.1"}


def test_the_experiment_shows_the_sweep_and_unfolds_its_trials(served, browser, screenshots):
    visit(browser, served.experiment)
    browser.wait_for("document.body.innerText.includes('sweep 1970-01-01')", timeout_s=120)
    assert "k_top=" not in browser.evaluate("document.body.innerText")
    browser.wait_for(f"{PLUS} !== null")
    browser.evaluate(f"{PLUS}.click()")
    browser.wait_for("(document.body.innerText.match(/\\d\\d iou_thr=/g) || []).length >= 10")
    browser.screenshot(screenshots / "ui-experiment.png")


PLUS = """document.querySelector('.ag-row [col-id*="Run Name"] button')"""
"""What unfolds the first row of the table."""


def test_the_comparison_shows_the_swept_settings_and_the_metric(served, browser, screenshots):
    visit(browser, served.comparison)
    browser.wait_for("document.querySelectorAll('.parcoords text').length > 10", timeout_s=120)
    drawn = browser.evaluate(
        "[...document.querySelectorAll('.parcoords text')].map(each => each.textContent)"
    )
    for name in [*SPACE, "best/val/mask_ap"]:
        assert any(text.startswith(name) for text in drawn), f"{name} is not among the axes"
    assert f"{TRIALS} matching runs" in browser.evaluate("document.body.innerText")
    browser.screenshot(screenshots / "ui-comparison.png")


def test_a_panel_of_a_trial_is_displayed(served, browser, storage, screenshots):
    run_id = RunFolder(storage / "many" / "s" / "s-00").read_tracking()["run_id"]
    base = served.experiment.partition("/runs")[0]
    visit(browser, f"{base}/runs/{run_id}/artifacts/samples/step-00000240.png")
    browser.wait_for("[...document.images].some(each => each.naturalWidth > 600)", timeout_s=120)
    browser.screenshot(screenshots / "ui-panel.png")


def test_nothing_was_asked_of_another_machine(served, browser):
    local = (f"http://127.0.0.1:{served.port}/", "data:", "blob:", "about:", "chrome")
    assert browser.requests
    assert [url for url in browser.requests if not url.startswith(local)] == []


def test_runs_of_a_dead_driver_do_not_look_alive(served, storage):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri(storage))
    runs = client.search_runs([client.get_experiment_by_name("many").experiment_id])
    assert len(runs) == TRIALS + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
