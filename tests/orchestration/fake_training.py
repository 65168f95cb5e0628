"""A training loop without torch that behaves like the real one towards files, reporter and resume."""

import time
from pathlib import Path


def make_training(*, step_s: float = 0.0, fail_at: int | None = None, error: str = "NonFiniteLossError"):
    """A function like `run_training`; nested, so that Ray sends its code along.

    `val/mask_ap` grows with the steps, to `qam.iou_thr` at the end. A run with `qam.k_top` 13 fails at step 2.
    """

    def train(config, *, folder: Path, data_root: Path, reporter, device: str, threads: int, resume: bool):
        import json
        import os
        from types import SimpleNamespace

        import boxseg.errors
        from boxseg.engine.events import EvalReport, StepReport

        steps = config.train.steps
        last = folder / "checkpoints" / "last"
        start = json.loads((last / "about.json").read_text())["step"] if resume and last.exists() else 0
        (folder / "starts").open("a").write(f"{os.getpid()} {start} {threads}\n")
        metrics = {}

        def save(done: int) -> None:
            last.mkdir(parents=True, exist_ok=True)
            (last / "about.json").write_text(json.dumps({"step": done}))

        for step in range(start, steps):
            time.sleep(step_s)
            done = step + 1
            if step == fail_at or (config.qam.k_top == 13 and step == 2):
                kind = getattr(boxseg.errors, error, None) or __builtins__[error]
                raise kind(f"step {step}: the loss is nan")
            if done % config.train.report_every == 0:
                reporter.on_step(StepReport(done, {"train/loss": 1 / done}))
            stop = reporter.should_stop()
            if done % max(round(steps * config.train.eval_every), 1) == 0 or done == steps:
                metrics = {"val/mask_ap": done / steps * config.qam.iou_thr, "val/box_ap": 0.5}
                save(done)
                if not (folder / "checkpoints" / "best").exists():
                    (folder / "checkpoints" / "best").symlink_to("last")
                reporter.on_eval(EvalReport(done, metrics, last, [], True))
            elif stop:
                save(done)
            if stop and done < steps:
                return SimpleNamespace(step=done, metrics=metrics, best=metrics, finished=False)
        return SimpleNamespace(step=steps, metrics=metrics, best=metrics, finished=True)

    return train
