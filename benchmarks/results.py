"""Prints what the methods of ablation sweeps reached, seeds as mean ± spread, and writes the tables into a page.

Usage: python benchmarks/results.py SWEEP_FOLDER… [--page docs/results.md]

A sweep folder is one of `experiments/ablation*.yaml`. Its trials are grouped by what they vary. Pseudo masks are
measured here, after training: the boxes of the first training images are labelled by the trial's best checkpoint and
compared with their drawn masks, so the data set of the sweep needs masks. Measurements are kept
beside the trials and made once.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from boxseg.build import build_datasets
from boxseg.config.method import BoxSegConfig
from boxseg.errors import ConfigError
from boxseg.evaluation.pseudo_quality import mask_iou, quality_metrics
from boxseg.files.writing import write_atomic
from boxseg.label.boxes import label_boxes
from boxseg.predict import Predictor
from orchestration.config.spec import load_sweep
from orchestration.record.run_folder import RunFolder
from orchestration.record.table import describe

AP = ("val/mask_ap", "val/mask_ap50", "val/mask_ap75", "val/box_ap")
PSEUDO = ("pseudo_iou", "quality_auroc", "quality_rank")
TITLES = (
    "mask AP",
    "AP50",
    "AP75",
    "box AP",
    "of the twin",
    "pseudo-mask IoU",
    "AUROC of q",
    "rank corr. of q",
)
TWIN = "method=supervised"
"""The setting whose mask AP the others are compared with."""


def main() -> None:
    """Parse the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", type=Path, help="folders of finished sweeps")
    parser.add_argument(
        "--page",
        type=Path,
        help="Markdown file whose blocks <!-- NAME --> … <!-- end --> are filled",
    )
    parser.add_argument(
        "--images", type=int, default=120, help="training images whose boxes are labelled"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for folder in arguments.sweeps:
        text = summarise(folder, images=arguments.images)
        print(f"{text}\n")
        if arguments.page is not None:
            write_atomic(
                arguments.page, fill_block(arguments.page.read_text(), folder.parent.name, text)
            )


def summarise(folder: Path, *, images: int) -> str:
    """Markdown: how the sweep was run, and one line for each setting.

    Raises:
        SystemExit: the folder is not one of a sweep, or none of its trials has finished.
    """
    try:
        spec = load_sweep(folder / "config.yaml")
    except ConfigError as error:
        raise SystemExit(
            f"{folder}: not the folder of a sweep, which `boxseg runs ls` shows ({error})"
        ) from error
    trials = [RunFolder(path.parent) for path in sorted(folder.glob("*/status.json"))]
    ended = {trial: trial.status() for trial in trials if trial.status().status == "finished"}
    if not ended:
        raise SystemExit(f"{folder}: no trial has finished; run `boxseg sweep` first")
    measured = {trial: measure_pseudo_masks(trial, images=images) for trial in ended}
    groups: dict[str, list[dict[str, float]]] = {}
    for trial, status in ended.items():
        values = {name: 100 * status.best[name] for name in AP if name in status.best} | measured[
            trial
        ]
        groups.setdefault(describe(status.values) or "as configured", []).append(values)
    minutes = sum((status.ended or 0) - (status.started or 0) for status in ended.values()) / 60
    commits = sorted({status.tags.get("git_commit", "unknown")[:9] for status in ended.values()})
    about = (
        f"`boxseg sweep experiments/{spec.name}.yaml` at commit {', '.join(commits)}: "
        f"{spec.train.steps} updates of {spec.train.batch_size} images, {len(ended)} trials, "
        f"{minutes / len(ended):.1f} minutes each on {spec.resources.cpus_per_worker:g} core."
    )
    return f"{about}\n\n{table(groups)}"


def measure_pseudo_masks(trial: RunFolder, *, images: int) -> dict[str, float]:
    """IoU of the masks for all training boxes, and how well their quality tells; read where it was measured before."""
    kept = trial.path / "pseudo_masks.json"
    if not kept.exists():
        predictor = Predictor(trial.path)
        pairs = label_training_boxes(
            predictor, data_root=trial.path.parents[2] / ".data", images=images
        )
        write_atomic(kept, json.dumps(quality_metrics(pairs)))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def label_training_boxes(
    predictor: Predictor, *, data_root: Path, images: int
) -> list[tuple[float, float]]:
    """Quality and IoU with the drawn mask, for the boxes of the first images that have one."""
    config: BoxSegConfig = predictor.config
    data, _ = build_datasets(config, data_root)
    pairs: list[tuple[float, float]] = []
    for index in range(min(images, len(data))):
        drawn, sample = data.true_masks(index), data[index]
        if drawn is not None:
            found = label_boxes(predictor, sample.image, sample.boxes, sample.labels)
            pairs.extend(
                zip(found.quality.tolist(), mask_iou(found.mask, drawn).tolist(), strict=True)
            )
    return pairs


def table(groups: dict[str, list[dict[str, float]]]) -> str:
    """Mean ± standard deviation over the trials of each setting; what was not measured is left empty."""
    twin = [trial["val/mask_ap"] for trial in groups.get(TWIN, []) if "val/mask_ap" in trial]
    lines = [f"| setting | seeds | {' | '.join(TITLES)} |", "|---" * (len(TITLES) + 2) + "|"]
    for name, trials in groups.items():
        cells = [
            spread([trial[metric] for trial in trials if metric in trial], digits=1)
            for metric in AP
        ]
        aps = [trial["val/mask_ap"] for trial in trials if "val/mask_ap" in trial]
        share = f"{statistics.fmean(aps) / statistics.fmean(twin):.0%}" if aps and twin else ""
        cells.append(share)
        cells += [
            spread([trial[metric] for trial in trials if metric in trial], digits=3)
            for metric in PSEUDO
        ]
        lines.append(f"| {name} | {len(trials)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], *, digits: int) -> str:
    """`mean ± standard deviation`, or the value alone."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def fill_block(page: str, name: str, text: str) -> str:
    """The page with `text` between `<!-- name -->` and the next `<!-- end -->`; a new block at its end if missing."""
    block = f"<!-- {name} -->\n{text}\n<!-- end -->"
    pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- end -->", re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: block, page, count=1)
    return f"{page.rstrip()}\n\n{block}\n"


if __name__ == "__main__":
    main()
