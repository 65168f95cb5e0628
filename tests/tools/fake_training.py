"""A training loop without torch that behaves like the real one towards files, reporter and resume."""

import time
from pathlib import Path

HURRY = "hurry"
"""A file of this name in a sweep's folder ends the pauses of its trials."""


def make_training(
    *,
    step_s: float = 0.0,
    fail_at: int | None = None,
    error: str = "NonFiniteLossError",
    parts_needed: int = 1,
    script: dict[int, dict[int, dict[str, float]]] | None = None,
):
    """A function like `run_training`; nested, so that Ray sends its code along.

    `val/mask_ap` grows with the steps, to `qam.iou_thr` at the end, unless there is a `script`: `qam.k_top` -> step ->
    metrics of that evaluation. `checkpoints/best/about.json` names the step of the best one.

    Some values of `qam.k_top` fail at step 2, or run out of memory at step 7, as do batches in fewer than
    `parts_needed` parts. Each step lasts `step_s` [s] until the folder above the run's has a file `HURRY`.
    """
    faults = {13: "NonFiniteLossError", 16: "ConfigError"}
    parts_by_k_top = {14: 2, 15: 1000}

    def train(
        config, *, folder: Path, data_root: Path, reporter, device: str, threads: int, criterion
    ):
        import os
        from types import SimpleNamespace

        import boxseg.errors
        from boxseg.engine.checkpoint import (
            find_sound,
            folder_of,
            load_about,
            publish,
            save_checkpoint,
            settle,
        )
        from boxseg.engine.events import EvalReport, StepReport

        steps = config.train.steps
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        about = {"step": 0, "evaluated": 0, "metrics": {}, "best": {}, "best_step": 0}
        found = find_sound(checkpoints)
        if found is not None:
            settle(found, criterion)
            about = load_about(found)
        start, evaluated, metrics = about["step"], about["evaluated"], about["metrics"]
        best, best_step = about["best"], about["best_step"]
        (folder / "starts").open("a").write(f"{os.getpid()} {start} {threads}\n")
        reporter.on_best(best_step, best)
        if evaluated:
            reporter.on_eval(
                EvalReport(evaluated, metrics, found, best_step == evaluated, is_repeated=True)
            )

        def save(done: int) -> Path:
            if getattr(reporter, "rank", 0) != 0:
                return folder_of(checkpoints, done)
            about = {
                "evaluated": evaluated,
                "metrics": metrics,
                "best": best,
                "best_step": best_step,
            }
            # tests kill it at any time
            files = {"state.pt": f"state of {done}".encode()}
            written = save_checkpoint(checkpoints, step=done, files=files, about=about)
            publish(checkpoints, written)
            return written

        for step in range(start, steps):
            if step_s and not (folder.parent / HURRY).exists():
                time.sleep(step_s)
            done = step + 1
            if step == fail_at or (step == 2 and config.qam.k_top in faults):
                name = error if step == fail_at else faults[config.qam.k_top]
                kind = getattr(boxseg.errors, name, None) or __builtins__[name]
                raise kind(f"step {step}: the loss is nan")
            if step == 7 and config.train.accumulate < parts_by_k_top.get(
                config.qam.k_top, parts_needed
            ):
                raise MemoryError
            if done % config.train.report_every == 0:
                reporter.on_step(StepReport(done, {"train/loss": 1 / done}))
            stop = reporter.should_stop()
            if done % max(round(steps * config.train.eval_every), 1) == 0 or done == steps:
                metrics, evaluated = (
                    {"val/mask_ap": done / steps * config.qam.iou_thr, "val/box_ap": 0.5},
                    done,
                )
                if script is not None:
                    metrics = script[config.qam.k_top][done]
                if criterion.better(metrics, than=best):
                    best, best_step = metrics, done
                reporter.on_eval(EvalReport(done, metrics, save(done), best_step == done))
            elif stop:
                save(done)
            if stop and done < steps:
                return SimpleNamespace(step=done, metrics=metrics, best=metrics)
        return SimpleNamespace(step=steps, metrics=metrics, best=metrics)

    return train
