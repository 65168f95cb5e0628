"""Prints what the methods of ablation sweeps reached, seeds as mean ± spread, and writes the tables into a page.

Usage: python benchmarks/results.py SWEEP_FOLDER… [--page docs/results.md]

A sweep folder is one of `experiments/ablation*.yaml`. Its trials are grouped by what they vary, and all numbers are
those of each trial's best evaluation.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from boxseg.errors import ConfigError
from boxseg.files.writing import write_atomic
from orchestration.config.spec import load_sweep
from orchestration.record.run_folder import RunFolder
from orchestration.record.table import describe

AP = ("val/mask_ap", "val/mask_ap50", "val/mask_ap75", "val/box_ap")
PSEUDO = ("qam/pseudo_iou", "qam/quality_auroc", "qam/quality_rank")
"""Of methods that make pseudo masks, on validation images with drawn masks."""
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
    arguments = parser.parse_args()
    for folder in arguments.sweeps:
        text = summarise(folder)
        print(f"{text}\n")
        if arguments.page is not None:
            write_atomic(
                arguments.page, fill_block(arguments.page.read_text(), folder.parent.name, text)
            )


def summarise(folder: Path) -> str:
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
    statuses = [RunFolder(path.parent).status() for path in sorted(folder.glob("*/status.json"))]
    ended = [status for status in statuses if status.status == "finished"]
    if not ended:
        raise SystemExit(f"{folder}: no trial has finished; run `boxseg sweep` first")
    groups: dict[str, list[dict[str, float]]] = {}
    for status in ended:
        found = {name: 100 * status.best[name] for name in AP if name in status.best}
        found |= {name: status.best[name] for name in PSEUDO if name in status.best}
        groups.setdefault(describe(status.values) or "as configured", []).append(found)
    minutes = sum((status.ended or 0) - (status.started or 0) for status in ended) / 60
    commits = sorted({status.tags.get("git_commit", "unknown")[:9] for status in ended})
    about = (
        f"`boxseg sweep experiments/{spec.name}.yaml` at commit {', '.join(commits)}: "
        f"{spec.train.steps} updates of {spec.train.batch_size} images, {len(ended)} trials, "
        f"{minutes / len(ended):.1f} minutes each on {spec.resources.cpus_per_worker:g} core."
    )
    return f"{about}\n\n{table(groups)}"


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
