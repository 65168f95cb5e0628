"""A photograph of many objects takes the memory of a few frames, not one for each object."""

import os
import subprocess
import sys
from pathlib import Path

OBJECTS = 40
LIMIT_MB = 400
"""A few copies of a picture of 6 megapixels; with masks as frames both took more than 1.2 GB."""

FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc keeps what is freed for later, up to 300 MB more in one run than in the next."""

BEGIN = """
import sys
import torch
from pathlib import Path
from boxseg.label.boxes import label_boxes
from boxseg.predict import Predictor
from boxseg.predict.files import Picture, draw_overlay, predict_files

predictor = Predictor(sys.argv[1])
train = predictor.config.train.model_copy(update={{"eval_size": 480}})  # or there is next to nothing to be seen
predictor.config = predictor.config.model_copy(update={{"train": train}})
image = torch.full((3, 2000, 3000), 90, dtype=torch.uint8)
boxes = []
for number in range({objects}):
    top, left = 40 + 290 * (number // 10), 30 + 290 * (number % 10)
    image[:, top : top + 24, left : left + 30] = 200
    boxes.append([left, top, left + 30.0, top + 24.0])
boxes = torch.tensor(boxes)
predictor([image[:, :90, :120]])  # loads what the first picture needs
label_boxes(predictor, image[:, :80, :80], boxes[:1])


def peak_mb():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


before = peak_mb()
"""

LABEL = """
labels = label_boxes(predictor, image, boxes)
assert sum(part.area > 0 for part in labels.parts) == {objects}
"""

PREDICT = """
every = {{"score_thr": 0.0, "nms_thr": 1.0, "topk": {objects}}}
fcos = predictor.config.fcos.model_copy(update=every)
predictor.config = predictor.config.model_copy(update={{"fcos": fcos}})
overlays = Path(sys.argv[2])
found = list(predict_files(predictor, iter([Picture(Path("a"), image)]), min_score=0, overlays=overlays))
assert len(found[0]["annotations"]) > {objects} / 4
assert len(list(overlays.iterdir())) == 1
"""

END = """
print(peak_mb() - before)
"""


def test_a_large_picture_takes_less_memory_than_a_frame_for_each_object(
    trained_run, tmp_path: Path
):
    program = (BEGIN + LABEL + PREDICT + END).format(objects=OBJECTS)
    command = [sys.executable, "-c", program, str(trained_run.checkpoint), str(tmp_path / "o")]
    environment = os.environ | FREED_AT_ONCE
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < LIMIT_MB, done.stdout
