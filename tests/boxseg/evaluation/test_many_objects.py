"""A picture of thousands of objects is evaluated and drawn in the memory of a few hundred of them."""

import json
import subprocess
import sys

from PIL import Image

SIDE = 60
"""Objects of a row and of a column."""
LIMIT_MB = 400
"""Comparing all pairs at once took 900 MB, and drawing a tile for each object 500 MB more."""

PROGRAM = """
import sys
from pathlib import Path
from boxseg.config.method import CocoSource
from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import MaskFile
from boxseg.evaluation.pictures import panel_row
from boxseg.evaluation.objects import read_objects

def peak_mb():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000

folder = Path(sys.argv[1])
source = CocoSource(images=folder, annotations=folder / "gt.json")
before = peak_mb()
data = CocoBoxes(source, train=False)
results = read_objects(MaskFile.read(folder / "gt.json"), data)
assert len(results[0].scores) == int(sys.argv[2])
row = panel_row(data, 0, results[0])
assert len(row.scores) == len(row.student_masks) == 1000
print(peak_mb() - before)
"""


def test_thousands_of_objects_take_little_memory(tmp_path):
    side = 20 * SIDE
    Image.new("RGB", (side, side), "grey").save(tmp_path / "a.png")
    annotations = []
    for number in range(SIDE**2):
        x, y = 20 * (number % SIDE), 20 * (number // SIDE)
        entry = {"id": number + 1, "image_id": 1, "category_id": 1, "score": 0.9, "iscrowd": 0}
        entry |= {
            "bbox": [x, y, 12, 12],
            "segmentation": [[x, y, x + 12, y, x + 12, y + 12, x, y + 12]],
        }
        annotations.append(entry)
    image = {"id": 1, "file_name": "a.png", "width": side, "height": side}
    categories = [{"id": 1, "name": "cell"}]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(SIDE**2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < LIMIT_MB
