"""What people's own files look like: the right value, or a refusal by name; never a wrong result in silence.

Each case is made by code; where the machine has the file sets that the cases stand for, those are read as well.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from orchestration.cli.app import run

SHARED = Path(__file__).parents[2].parent / "shared" / "cases"
Maker = Callable[[Path], None]
MAKERS: dict[str, Maker] = {}
BOX, OTHER = [4, 4, 16, 12], [30, 6, 20, 14]


def polygon(box: list[float]) -> list[list[float]]:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def picture(path: Path, size: tuple[int, int] = (64, 48), **options: Any) -> None:
    pixels = np.random.default_rng(len(path.name)).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def image(number: int = 1, name: str = "a.png", **fields: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 64, "height": 48} | fields


def annotation(
    number: Any = 1, box: list[float] | None = None, *, masked: bool = True, **fields: Any
) -> dict[str, Any]:
    box = box or BOX
    drawn = {"segmentation": polygon(box)} if masked else {}
    area = box[2] * box[3]
    own = {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0, "area": area}
    return own | drawn | fields


def detection(box: list[float], score: Any = 0.9, **fields: Any) -> dict[str, Any]:
    own = {
        "image_id": 1,
        "category_id": 1,
        "bbox": box,
        "segmentation": polygon(box),
        "score": score,
    }
    return own | fields


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(
    images: list[Any], annotations: list[Any], names: tuple[str, ...] = ("thing",)
) -> dict[str, Any]:
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def maker(make: Maker) -> Maker:
    MAKERS[make.__name__] = make
    return make


@pytest.fixture(params=["made", "shared"])
def case(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Puts the files of a case into the working folder."""
    monkeypatch.chdir(tmp_path)

    def put(name: str) -> None:
        if request.param == "made":
            MAKERS[name](tmp_path)
        elif (SHARED / name).is_dir():
            shutil.copytree(SHARED / name, tmp_path, dirs_exist_ok=True)
        else:
            pytest.skip("this machine has not the file sets")

    return put


@pytest.fixture
def told(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str]]:
    """Runs a command in the working folder: its exit code, and all that it says."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        caplog.clear()
        code = run(list(words))
        shown = capsys.readouterr()
        return code, shown.out + shown.err + caplog.text

    return call


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What `boxseg eval` measures."""

    def measure(found: str, data: str = "gt.json", *more: str) -> dict[str, Any]:
        assert run(["eval", found, "--data", data, *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return measure


def read(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


@maker
def eval_annotation_id_0(folder: Path) -> None:
    picture(folder / "a.png")
    write(folder / "gt.json", coco([image()], [annotation(0)]))
    write(folder / "pred.json", [detection(BOX)])


def test_annotation_id_0_does_not_count_as_a_miss(case, score, told):
    case("eval_annotation_id_0")
    metrics = score("pred.json")["metrics"]
    assert metrics.pop("val/best_score") == pytest.approx(0.9)  # that of the only detection
    assert list(metrics.values()) == pytest.approx([1.0] * len(metrics))


@maker
def eval_duplicate_ids(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(folder / name)
    images = [image(), image(2, "b.png")]
    for name, ids in (("gt", (1, 2, 1)), ("gt0", (0, 0, 0))):
        objects = [annotation(ids[0]), annotation(ids[1], OTHER), annotation(ids[2], image_id=2)]
        write(folder / f"{name}.json", coco(images, objects))
    write(folder / "pred.json", [detection(BOX), detection(OTHER), detection(BOX, image_id=2)])


@pytest.mark.parametrize(
    ("name", "which"),
    [("gt.json", "annotation 1 occurs 2"), ("gt0.json", "annotation 0 occurs 3")],
)
def test_ids_that_occur_twice_are_refused(case, told, name, which):
    case("eval_duplicate_ids")
    code, said = told("eval", "pred.json", "--data", name)
    assert code == 3
    assert which in said


@maker
def eval_foreign_image_ids(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(folder / name)
    objects = [
        annotation(1),
        annotation(2, OTHER),
        annotation(3, image_id=2),
        annotation(4, OTHER, image_id=2),
    ]
    write(folder / "gt.json", coco([image(), image(2, "b.png")], objects))
    found = [detection(box, image_id=number) for number in (1, 2) for box in (BOX, OTHER)]
    write(
        folder / "foreign.json", [each | {"image_id": each["image_id"] + 1000} for each in found]
    )
    write(
        folder / "some_foreign.json", found[:2] + [each | {"image_id": 1002} for each in found[2:]]
    )
    write(folder / "text.json", [each | {"image_id": str(each["image_id"])} for each in found])
    write(folder / "s_null.json", [found[0] | {"score": None}, *found[1:]])
    write(folder / "s_nan.json", [found[0] | {"score": float("nan")}, *found[1:]])


@pytest.mark.parametrize("name", ["foreign", "text", "s_null", "s_nan"])
def test_results_that_cannot_be_matched_or_ranked_are_refused(case, told, name):
    case("eval_foreign_image_ids")
    code, said = told("eval", f"{name}.json", "--data", "gt.json")
    assert code == 3
    assert f"{name}.json" in said


def test_results_for_other_images_are_counted(case, told):
    case("eval_foreign_image_ids")
    code, said = told("eval", "some_foreign.json", "--data", "gt.json")
    assert code == 0
    assert "2 of 4 entries are for other images" in said


@maker
def eval_boundary_ap_crowd(folder: Path) -> None:
    picture(folder / "a.png")
    region = [5, 25, 55, 20]
    mask = np.zeros((48, 64), dtype=bool)
    mask[25:45, 5:60] = True
    flat = mask.ravel(order="F")
    turns = np.flatnonzero(np.diff(flat, prepend=False))
    runs = np.diff([0, *turns, flat.size]).tolist()
    crowd = annotation(2, region, iscrowd=1, segmentation={"counts": runs, "size": [48, 64]})
    write(folder / "gt.json", coco([image()], [annotation(), crowd]))
    inside = ([10, 28, 10, 10], 0.9), ([30, 28, 10, 10], 0.8)
    write(folder / "p.json", [detection(BOX, 0.5), *(detection(*each) for each in inside)])


def test_detections_in_a_crowd_are_ignored_by_boundary_ap_too(case, score):
    case("eval_boundary_ap_crowd")
    metrics = score("p.json")["metrics"]
    assert [metrics[f"val/{kind}_ap"] for kind in ("mask", "box", "boundary")] == pytest.approx(
        [1.0] * 3
    )


@maker
def duplicate_class_names(folder: Path) -> None:
    picture(folder / "a.png")
    write(
        folder / "gt.json",
        coco([image()], [annotation(), annotation(2, OTHER, category_id=2)], ("thing", "thing")),
    )
    write(folder / "p.json", [detection(BOX), detection(OTHER, category_id=2)])


def test_classes_of_the_same_name_are_kept_apart(case, score, capsys):
    case("duplicate_class_names")
    assert score("p.json")["classes"].keys() == {"thing (id 1)", "thing (id 2)"}
    assert run(["data", "stats", "gt.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"thing (id 1)": 1, "thing (id 2)": 1}


@maker
def predict_then_eval(folder: Path) -> None:
    """Predictions of a call with a folder, and of one inside it."""
    for name, below in (("found", "set/val/"), ("found2", "")):
        found = coco([image(name=f"{below}000000.png")], [detection(BOX, id=1)])
        write(folder / name / "predictions.coco.json", found)


@pytest.mark.parametrize("name", ["found", "found2"])
def test_predictions_are_matched_with_any_folder_in_their_names(case, score, told, tmp_path, name):
    case("predict_then_eval")
    found = read(f"{name}/predictions.coco.json")
    images = [each | {"file_name": Path(each["file_name"]).name} for each in found["images"]]
    for each in images:
        picture(tmp_path / "set/val" / each["file_name"], (each["width"], each["height"]))
    keep = ("id", "image_id", "category_id", "bbox", "area", "segmentation")
    objects = [{key: each[key] for key in keep if key in each} for each in found["annotations"]]
    write(
        tmp_path / "set/annotations/val.json",
        {"images": images, "annotations": objects} | {"categories": found["categories"]},
    )
    there = tmp_path / "elsewhere"  # so that the names do not lead to the files
    there.mkdir()
    paths = [
        str(tmp_path / each)
        for each in (f"{name}/predictions.coco.json", "set/annotations/val.json", "set/val")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        assert score(paths[0], paths[1], "--images", paths[2])["metrics"][
            "val/mask_ap"
        ] == pytest.approx(1.0)
        if name == "found":
            shutil.move(tmp_path / "set/val", tmp_path / "set/train")
            code, said = told(
                "eval", paths[0], "--data", paths[1], "--images", str(tmp_path / "set/train")
            )
            assert code == 3
            assert "'set/val/000000.png'" in said
            assert "file name" in said


def test_categories_of_results_are_matched_by_name(score, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    write(
        tmp_path / "gt.json",
        coco([image()], [annotation(), annotation(2, OTHER, category_id=2)], ("cat", "dog")),
    )
    found = coco(
        [image()],
        [detection(BOX, id=1, category_id=2), detection(OTHER, id=2, category_id=1)],
        ("dog", "cat"),
    )
    write(tmp_path / "found.json", found)
    assert score(str(tmp_path / "found.json"), str(tmp_path / "gt.json"))["metrics"][
        "val/mask_ap"
    ] == pytest.approx(1.0)


@maker
def crowd_flag_on_all_masks(folder: Path) -> None:
    picture(folder / "a.png")
    brush = {"iscrowd": 1, "segmentation": {"counts": [0, 48 * 64], "size": [48, 64]}}
    objects = [
        annotation(),
        annotation(2, OTHER),
        annotation(3, **brush),
        annotation(4, OTHER, **brush),
    ]
    write(folder / "instances_default.json", coco([image()], objects))


def test_crowd_flags_on_single_objects_are_reported(case, told):
    case("crowd_flag_on_all_masks")
    name = "instances_default.json"
    for words in (("data", "check", name), ("label", name, "--source", "box", "--output", "out")):
        code, said = told(*words)
        assert code == 0
        assert "2 of 4 masks marked as crowds (iscrowd 1)" in said
    content = read("instances_default.json")
    write(
        Path("all.json"),
        content | {"annotations": [each | {"iscrowd": 1} for each in content["annotations"]]},
    )
    code, said = told("data", "check", "all.json")
    assert code == 3
    assert "set iscrowd to 0 in those of its 4 crowds" in said


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize(("bits", "warnings"), [(3, 1), (8, 0), (12, 0), (16, 0)])
def test_colours_of_files_of_16_bits_are_reported_where_they_show_nothing(
    told, ending, bits, warnings
):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (48, 64, 3), dtype=np.uint16)
    cv2.imwrite(f"a.{ending}", pixels)
    write(Path("gt.json"), coco([image(name=f"a.{ending}")], [annotation()]))
    code, said = told("data", "check", "gt.json")
    assert code == 0
    assert said.count("has only brightnesses 0 to 7") == warnings


@pytest.mark.parametrize(
    ("values", "is_cut_off"), [((-1000, 3000), True), ((0, 70_000), True), ((0, 65535), False)]
)
def test_values_that_are_cut_off_are_reported(told, values, is_cut_off):
    pixels = np.full((48, 64), values[0], dtype=np.int32)
    pixels[20:, 30:] = values[1]
    Image.fromarray(pixels).save("a.tif")
    write(Path("gt.json"), coco([image(name="a.tif")], [annotation()]))
    code, said = told("data", "check", "gt.json")
    assert (code, f"has values from {values[0]} to {values[1]}" in said) == (0, is_cut_off)


@pytest.mark.parametrize("folder", ["val2017", "images/val2017"])
def test_images_are_found_where_coco_and_cvat_keep_them(told, folder):
    picture(Path(folder) / "a.png")
    write(Path("annotations/instances_val2017.json"), coco([image()], [annotation()]))
    code, said = told("data", "check", "annotations/instances_val2017.json")
    assert (code, "0 errors" in said) == (0, True)


def test_voc_files_are_read_from_any_folder_and_copies_of_macs_are_not(told):
    xml = (
        "<annotation><filename>a.png</filename><object><name>cat</name><bndbox><xmin>4</xmin>"
        "<ymin>4</ymin><xmax>20</xmax><ymax>16</ymax></bndbox></object></annotation>"
    )
    picture(Path("data/a.png"))
    Path("labels").mkdir()
    Path("labels/a.xml").write_text(xml)
    Path("labels/._a.xml").write_bytes(b"\x00\x05\x16\x07\xff")
    code, said = told("data", "import", ".", "--from", "voc", "--output", "out")
    assert (code, "all: 1 images, 1 objects" in said) == (0, True)
    assert read("out/all.json")["images"][0]["file_name"] == "data/a.png"


def test_other_classes_to_validate_on_are_refused_before_anything_starts(told):
    picture(Path("a.png"))
    for name in ("cat", "dog"):
        write(Path(f"{name}.json"), coco([image()], [annotation()], (name,)))
    Path("e.yaml").write_text(
        "name: e\ndata: {train: {images: ., annotations: cat.json}, "
        "val: {images: ., annotations: dog.json}}\n"
    )
    code, said = told("train", "e.yaml", "--plan")
    assert code == 3
    assert "categories 1 dog differ from those of" in said


def test_labelling_reports_pictures_that_viewers_turn(told):
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(Path("a.jpg"), exif=exif)
    write(Path("gt.json"), coco([image(name="a.jpg")], [annotation()]))
    code, said = told("label", "gt.json", "--source", "box")
    assert code == 0
    assert "asks viewers to turn or mirror it (EXIF orientation 3)" in said


def test_a_file_without_detections_is_named_as_such(told):
    picture(Path("a.png"))
    write(Path("gt.json"), coco([image()], [annotation()]))
    write(Path("found.json"), coco([image()], []))
    code, said = told("eval", "found.json", "--data", "gt.json")
    assert code == 3
    assert "has no mask for any image of gt.json, though it lists some of them" in said


@pytest.mark.parametrize(
    ("boxes", "looks"),
    [
        ([[0.1, 0.1, 0.4, 0.5], [0.5, 0.2, 0.3, 0.6]], "look like shares of width and height"),
        ([[30, 20, 60, 44]] * 4, "all fit as x1, y1, x2, y2"),
    ],
)
@pytest.mark.parametrize("command", ["label", "eval"])
def test_boxes_that_are_not_in_pixels_from_a_corner_are_refused(told, boxes, looks, command):
    picture(Path("a.png"))
    entries = [annotation(i, box, masked=False) for i, box in enumerate(boxes, start=1)]
    write(Path("gt.json"), coco([image()], entries))
    words = ["label", "gt.json", "--source", "box", "--output", "out"]
    if command == "eval":
        words = ["eval", "gt.json", "--data", "gt.json", "--output", "out"]
    code, said = told(*words)
    assert (code, looks in said) == (3, True)
    assert not Path("out/labels.coco.json").exists()


def test_the_plan_of_labels_reports_boxes_that_look_shifted(told):
    picture(Path("a.png"), (640, 480))
    corners = [[x, y] for x in range(0, 541, 90) for y in range(0, 381, 95)]
    objects = [
        annotation(number, [x + 50, y + 50, 100, 100], masked=False)
        for number, (x, y) in enumerate(corners, start=1)
    ]
    write(Path("gt.json"), coco([image(width=640, height=480)], objects))
    code, said = told("label", "gt.json", "--plan", "--minutes", "5")
    assert code in (0, 3)
    assert "x and y are those of the middle" in said


def test_a_first_class_that_never_occurs_is_reported(told):
    classes = [{"id": number, "name": name} for number, name in enumerate(("cat", "dog", "cow"))]
    content = coco([image()], [annotation(), annotation(2, OTHER, category_id=2)])
    picture(Path("a.png"))
    write(Path("gt.json"), content | {"categories": classes})
    code, said = told("data", "check", "gt.json")
    assert code == 0
    assert "has no object of category id 0 'cat', but of 1 to 2; here the first class is 0" in said


def test_classes_of_the_same_name_are_reported(case, told):
    case("duplicate_class_names")
    code, said = told("data", "check", "gt.json", "--for", "val")
    assert code == 0
    assert "names categories 1, 2 alike: 'thing'" in said


@maker
def export_counts_masks_it_does_not_write(folder: Path) -> None:
    picture(folder / "a.png")
    shares = [[0.47, 0.125, 0.78, 0.125, 0.78, 0.41]]
    objects = [
        annotation(segmentation=polygon([40, 30, 10, 10])),
        annotation(2, OTHER, segmentation=shares),
        annotation(3, OTHER, segmentation=polygon([200, 200, 20, 20])),
    ]
    write(folder / "gt.json", coco([image()], objects))


def test_masks_away_from_their_box_or_image_or_in_fractions_are_reported_and_not_exported(
    case, told
):
    case("export_counts_masks_it_does_not_write")
    code, said = told("data", "check", "gt.json", "--for", "val")
    assert code == 3
    for which in (
        "away from its bbox [4, 4, 16, 12]",
        "look like shares",
        "outside its image of 64 x 48 px",
    ):
        assert which in said
    assert told("data", "check", "gt.json")[0] == 0  # boxes alone can be trained on
    # The fourth is that two share one box.
    assert "4 warnings" in told("data", "check", "gt.json")[1]
    assert told("data", "export", "gt.json", "--to", "yolo", "--output", "exp")[0] == 3
    assert not Path("exp").exists()


@maker
def jpeg_damaged_with_end_marker(folder: Path) -> None:
    picture(folder / "whole.jpg", (128, 96), quality=90)
    data = (folder / "whole.jpg").read_bytes()
    (folder / "half_with_end.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    third = len(data) // 3
    (folder / "zeros_inside.jpg").write_bytes(data[:third] + bytes(third) + data[2 * third :])
    names = ("half_with_end.jpg", "zeros_inside.jpg")
    images = [image(number, name, width=128, height=96) for number, name in enumerate(names, 1)]
    write(
        folder / "gt.json",
        coco(images, [annotation(number, image_id=number, masked=False) for number in (1, 2)]),
    )


def test_damage_within_a_jpeg_is_found_by_decoding(case, told):
    case("jpeg_damaged_with_end_marker")
    code, said = told("data", "check", "gt.json", "--decode", "--json")
    assert code == 3
    assert said.count("is damaged") == 2
    picture(Path("half_with_end.jpg"), (128, 96))
    picture(Path("zeros_inside.jpg"), (128, 96), progressive=True)
    assert told("data", "check", "gt.json", "--decode")[0] == 0


@maker
def label_same_stem(folder: Path) -> None:
    for name in ("a.png", "a.jpg"):
        picture(folder / name)
    objects = [annotation(masked=False), annotation(2, image_id=2, masked=False)]
    write(folder / "gt.json", coco([image(), image(2, "a.jpg")], objects))


def test_names_that_differ_in_their_ending_cost_the_yolo_folder_alone(case, told):
    case("label_same_stem")
    code, said = told("data", "check", "gt.json")
    assert (code, "a.png and a.jpg" in said) == (0, True)
    code, said = told("label", "gt.json", "--source", "box", "--output", "out", "--review")
    assert code == 0
    assert said.index("a.png and a.jpg") >= 0
    assert len(read("out/labels.coco.json")["annotations"]) == 2
    assert len(read("out/labels.polygons.json")["annotations"]) == 2
    assert Path("out/review/index.html").exists()
    assert not Path("out/yolo").exists()


@maker
def windows_file_names(folder: Path) -> None:
    picture(folder / "images/x.jpg")
    names = {
        "backslash": "images\\x.jpg",
        "backslash_up": "..\\..\\label-studio\\media\\upload\\4\\x.jpg",
        "url": "/data/local-files/?d=images%5Cx.jpg",
    }
    for name, file_name in names.items():
        write(folder / f"{name}.json", coco([image(name=file_name)], [annotation(masked=False)]))


@pytest.mark.parametrize("name", ["backslash", "backslash_up", "url"])
def test_file_names_of_other_systems_are_reported_with_the_existing_file(case, told, name):
    case("windows_file_names")
    code, said = told("data", "check", f"{name}.json", "--images", ".")
    assert code == 3
    assert "the file 'images/x.jpg' is there" in said


def test_a_file_that_is_listed_twice_is_refused(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    objects = [annotation(masked=False), annotation(2, OTHER, image_id=2, masked=False)]
    write(tmp_path / "gt.json", coco([image(), image(2, "./a.png")], objects))
    code, said = told("data", "check", "gt.json")
    assert (code, "lists the file 'a.png' 2 times" in said) == (3, True)
    assert told("label", "gt.json", "--source", "box", "--output", "out")[0] == 3
    assert not Path("out").exists()


@pytest.mark.parametrize("turn", [2, 3, 4])
def test_turns_that_keep_the_size_are_reported(tmp_path, monkeypatch, told, turn):
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = turn
    picture(tmp_path / "a.jpg", exif=exif)
    write(tmp_path / "gt.json", coco([image(name="a.jpg")], [annotation(masked=False)]))
    code, said = told("data", "check", "gt.json")
    assert (code, f"EXIF orientation {turn}" in said) == (0, True)


@pytest.mark.parametrize(("highest", "warnings"), [(4095, 0), (200, 0), (12, 1)])
def test_grey_pictures_that_read_as_black_are_reported(
    tmp_path, monkeypatch, told, highest, warnings
):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, highest, (48, 64)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    write(tmp_path / "gt.json", coco([image()], [annotation(masked=False)]))
    code, said = told("data", "check", "gt.json")
    assert (code, said.count("of 0 to 255 once it is read")) == (0, warnings)


def test_more_objects_than_ap_counts_are_reported_with_the_effect(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    boxes = [[x, y, 3, 3] for x in range(0, 60, 4) for y in range(0, 44, 4)]
    write(
        tmp_path / "gt.json",
        coco([image()], [annotation(k, box) for k, box in enumerate(boxes, 1)]),
    )
    write(tmp_path / "p.json", [detection(box) for box in boxes])
    code, said = told("eval", "p.json", "--data", "gt.json")
    assert code == 0
    assert "65 of 165 objects cannot be found, so recall ends at 0.606" in said


def fixed(told, name: str, *more: str) -> tuple[dict[str, Any], str]:
    """The copy without the faults, which is sound, and what was said of it."""
    code, said = told("data", "check", name, *more, "--fix", f"{name}.fixed")
    assert code == 0, said
    return read(f"{name}.fixed/annotations.json"), said


@maker
def fix_leaves_bad_masks(folder: Path) -> None:
    picture(folder / "a.png")
    first = annotation(segmentation=[*polygon(BOX), [1, 1, 3, 3]])
    write(
        folder / "gt.json",
        coco([image()], [first, annotation(2, OTHER, segmentation=[[30, 6, 50, 20]])]),
    )


def test_polygons_of_two_points_are_taken_out_and_named(case, told):
    case("fix_leaves_bad_masks")
    copy, said = fixed(told, "gt.json", "--for", "val")
    assert copy["annotations"][0]["segmentation"] == polygon(BOX)
    assert "segmentation" not in copy["annotations"][1]
    assert "1 masks left out: they cannot be decoded (id 2)" in said


@maker
def missing_size_and_bbox(folder: Path) -> None:
    picture(folder / "a.png")
    whole = coco([image(0)], [annotation(image_id=0)])
    write(folder / "nosize.json", whole | {"images": [{"id": 0, "file_name": "a.png"}]})
    without_box = {key: value for key, value in annotation(image_id=0).items() if key != "bbox"}
    write(folder / "nobbox.json", whole | {"annotations": [without_box]})


def test_sizes_come_from_the_image_and_boxes_from_the_mask(case, told):
    case("missing_size_and_bbox")
    (entry,) = fixed(told, "nosize.json")[0]["images"]
    assert (entry["width"], entry["height"]) == (64, 48)
    assert fixed(told, "nobbox.json")[0]["annotations"][0]["bbox"] == BOX


@maker
def string_ids(folder: Path) -> None:
    for name in ("a.png", "c.png"):
        picture(folder / name)
    images = [image("1541715161404"), image("x7", "c.png")]
    objects = [
        annotation("1", image_id="1541715161404", masked=False),
        annotation("2", OTHER, image_id="x7", masked=False),
    ]
    write(folder / "gt.json", coco(images, objects))
    of_floats = [annotation(1.0, image_id=1.0, masked=False)]
    write(folder / "gtf.json", coco([image(1.0, width=64.0, height=48.0)], of_floats))


def test_ids_and_sizes_become_whole_numbers(case, told):
    case("string_ids")
    copy, _ = fixed(told, "gt.json")
    file_of = {each["id"]: each["file_name"] for each in copy["images"]}
    found = [(file_of[each["image_id"]], each["bbox"]) for each in copy["annotations"]]
    assert found == [("a.png", BOX), ("c.png", OTHER)]
    copy, _ = fixed(told, "gtf.json")
    assert (copy["images"][0]["width"], copy["annotations"][0]["image_id"]) == (64, 1)
    assert told("data", "import", "gt.json", "--from", "coco", "--output", "imp")[0] == 0
    assert len(read("imp/gt.json")["annotations"]) == 2


@pytest.mark.parametrize("name", ["backslash", "backslash_up", "url"])
def test_file_names_are_fixed(case, told, name):
    case("windows_file_names")
    copy, said = fixed(told, f"{name}.json", "--images", ".")
    assert [each["file_name"] for each in copy["images"]] == ["images/x.jpg"]
    assert "1 file names written as on the disk (images/x.jpg)" in said


def test_entries_of_one_file_are_joined_and_cut_boxes_get_their_area(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    objects = [annotation(masked=False), annotation(2, [54, 6, 20, 14], image_id=2, masked=False)]
    write(tmp_path / "gt.json", coco([image(), image(2)], objects))
    copy, said = fixed(told, "gt.json")
    assert [(each["image_id"], each["bbox"], each["area"]) for each in copy["annotations"]] == [
        (1, BOX, 192),
        (1, [54, 6, 10, 14], 140),
    ]
    assert "1 image entries joined with another of the same file (a.png)" in said


def test_an_import_without_images_fails(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    write(tmp_path / "gt.json", coco([image(width="wide")], [annotation(masked=False)]))
    code, said = told("data", "import", "gt.json", "--from", "coco", "--output", "imp")
    assert (code, "(a.png)" in said) == (3, True)
    assert not Path("imp").exists()


def test_an_import_that_is_refused_names_what_is_there(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png", size=(640, 480))
    in_shares = annotation(box=[0.1, 0.2, 0.5, 0.25], masked=False)
    write(tmp_path / "gt.json", coco([image(width=640, height=480)], [in_shares]))
    code, said = told("data", "import", "gt.json", "--from", "coco", "--output", "imp")
    assert (code, Path("imp").exists()) == (3, False)
    assert "error: gt.json: has 1 boxes" in said


def label(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


LINE = "0 0.1875 0.2083333 0.25 0.25"


def imported(told, form: str, name: str) -> tuple[dict[str, Any], str]:
    code, said = told("data", "import", ".", "--from", form, "--output", "coco")
    assert code == 0, said
    return read(f"coco/{name}.json"), said


@maker
def yolo_exif_rotated(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / "images/a.jpg", exif=exif)
    label(folder / "labels/a.txt", "0 0.25 0.390625 0.25 0.46875")
    label(folder / "data.yaml", "train: images", "val: images", "names: [thing]")


def test_fractions_of_a_turned_picture_become_stored_pixels(case, told):
    case("yolo_exif_rotated")
    content, _ = imported(told, "yolo", "train")
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (64, 48)
    assert content["annotations"][0]["bbox"] == pytest.approx([10, 30, 30, 12])


@pytest.mark.parametrize("turn", range(1, 9))
def test_points_are_turned_as_pictures_are(turn):
    from boxseg.formats.yolo import TurnedPicture

    stored = np.zeros((48, 64), dtype=np.uint8)
    stored[10, 50] = 255
    seen = Image.fromarray(stored)
    exif = seen.getexif()
    exif[0x0112] = turn
    turned = np.asarray(ImageOps.exif_transpose(seen))
    y, x = np.argwhere(turned)[0] + 0.5
    shares = np.array([[x / turned.shape[1], y / turned.shape[0]]])
    assert TurnedPicture((48, 64), turn).stored_pixels(shares)[0].tolist() == pytest.approx(
        [50.5, 10.5]
    )


@maker
def yolo_label_beside_image(folder: Path) -> None:
    for name in ("some/x", "other/images/y"):
        picture(folder / f"{name}.png")
        label(folder / f"{name}.txt", LINE)
    label(
        folder / "data.yaml",
        "train: [some, other/images]",
        "val: [some, other/images]",
        "names: [a]",
    )


def test_labels_beside_their_images_are_read(case, told):
    case("yolo_label_beside_image")
    assert len(imported(told, "yolo", "train")[0]["annotations"]) == 2


@pytest.mark.parametrize(
    ("images", "labels"), [("Images", "Labels"), ("IMAGES", "LABELS"), ("images", "Labels")]
)
def test_labels_in_capitals_are_read_and_missing_ones_counted(
    tmp_path, monkeypatch, told, images, labels
):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / images / "x.png")
    picture(tmp_path / images / "y.jfif", format="jpeg")
    label(tmp_path / labels / "x.txt", LINE)
    label(tmp_path / "data.yaml", f"train: {images}", "names: [a]")
    content, said = imported(told, "yolo", "train")
    assert (len(content["images"]), len(content["annotations"])) == (2, 1)
    assert "1 of 2 images have no label file (looked for " in said
    (tmp_path / labels / "x.txt").unlink()
    code, said = told("data", "import", ".", "--from", "yolo", "--output", "again")
    assert (code, "2 of 2 images have no label file" in said) == (3, True)


@maker
def yolo_list_with_wrong_paths(folder: Path) -> None:
    picture(folder / "images/train/x.png")
    label(folder / "labels/train/x.txt", LINE)
    label(folder / "train.txt", "images\\train\\x.png")
    label(folder / "data.yaml", "path: .", "train: train.txt", "names:", "  0: a")


def test_a_list_of_paths_that_lead_nowhere_is_refused(case, told):
    case("yolo_list_with_wrong_paths")
    code, said = told("data", "import", ".", "--from", "yolo", "--output", "coco")
    assert (code, "'images/train/x.png' is there" in said) == (3, True)
    assert not Path("coco").exists()


@maker
def yolo_pose_labels(folder: Path) -> None:
    picture(folder / "images/x.png")
    label(folder / "labels/x.txt", "0 0.5 0.5 0.4 0.4 0.35 0.35 0.65 0.65")
    label(
        folder / "data.yaml", "train: images", "val: images", "names: [a, b]", "kpt_shape: [2, 2]"
    )


def test_the_boxes_of_poses_are_read(case, told):
    case("yolo_pose_labels")
    content, said = imported(told, "yolo", "train")
    assert content["annotations"][0]["bbox"] == pytest.approx([19.2, 14.4, 25.6, 19.2])
    assert "segmentation" not in content["annotations"][0]
    assert "the keypoints of 1 objects are left out" in said


SIZE = "<size><width>64</width><height>48</height></size>"


def voc(folder: Path, name: str, *objects: str, size: str = SIZE) -> None:
    inner = "".join((f"<filename>{name}</filename>", size, *objects))
    label(folder / f"{Path(name).stem}.xml", f"<annotation>{inner}</annotation>")


def voc_object(box: list[int], difficult: str = "0", name: str = "helmet") -> str:
    corners = zip(
        ("xmin", "ymin", "xmax", "ymax"),
        (box[0], box[1], box[0] + box[2], box[1] + box[3]),
        strict=True,
    )
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in corners)
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


@maker
def voc_difficult_without_lists(folder: Path) -> None:
    picture(folder / "images/a.png")
    objects = [voc_object(BOX, "1"), voc_object(OTHER, " 1 "), voc_object([5, 5, 4, 4], "true")]
    voc(folder / "Annotations", "a.png", *objects)


def test_difficult_objects_are_crowds_and_odd_values_are_reported(case, told):
    case("voc_difficult_without_lists")
    content, said = imported(told, "voc", "all")
    assert [each["iscrowd"] for each in content["annotations"]] == [1, 1, 0]
    assert "difficult 'true', which is neither 0 nor 1" in said


@maker
def voc_layout_own_classes(folder: Path) -> None:
    picture(folder / "JPEGImages/a.jpg")
    voc(folder / "Annotations", "a.jpg", voc_object(BOX))
    for name in ("train", "val"):
        label(folder / f"ImageSets/Main/{name}.txt", "a")


def test_lists_of_voc_with_own_classes_are_read(case, told):
    case("voc_layout_own_classes")
    content, _ = imported(told, "voc", "boxes_train")
    assert [each["name"] for each in content["categories"]] == ["helmet"]
    assert content["annotations"][0]["bbox"] == BOX
    assert told("label", ".", "--source", "box", "--output", "out")[0] == 0


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_sizes_that_voc_files_lack_come_from_the_image(tmp_path, monkeypatch, told, size):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "JPEGImages/a.png")
    voc(tmp_path / "Annotations", "C:\\x\\a.png", voc_object(BOX), size=size)
    (tmp_path / "Annotations").joinpath("C:\\x\\a.xml").rename(tmp_path / "Annotations/a.xml")
    label(tmp_path / "ImageSets/Main/default.txt", "a")
    content, _ = imported(told, "voc", "all")
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}]


def test_a_box_of_no_size_is_taken_from_its_mask(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    write(tmp_path / "gt.json", coco([image()], [annotation() | {"bbox": [20, 16, -16, -12]}]))
    assert fixed(told, "gt.json")[0]["annotations"][0]["bbox"] == BOX


def test_labels_of_files_that_are_no_images_are_counted(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "images/a.avif")
    (tmp_path / "images/b.heic").write_bytes(b"0")
    for name in ("a", "b"):
        label(tmp_path / f"labels/{name}.txt", LINE)
    label(tmp_path / "data.yaml", "train: images", "names: [a]")
    content, said = imported(told, "yolo", "train")
    assert [each["file_name"] for each in content["images"]] == ["images/a.avif"]
    assert "1 label files belong to no image" in said


def test_a_mask_that_only_touches_its_box_is_left_out_as_the_check_wants_it(
    tmp_path, monkeypatch, told
):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    beside = [BOX[0] + BOX[2], *BOX[1:]]
    write(
        tmp_path / "gt.json",
        coco([image()], [annotation(segmentation=polygon(beside)), annotation(2, OTHER)]),
    )
    copy, said = fixed(told, "gt.json", "--for", "val")
    assert "segmentation" not in copy["annotations"][0]
    assert "segmentation" in copy["annotations"][1]
    assert "1 masks left out: away from their box or image (id 1)" in said


OTHER_FORMATS = {
    "LabelMe": {"version": "5", "shapes": [], "imagePath": "a.png", "imageHeight": 48},
    "VIA": {"a.png123": {"filename": "a.png", "size": 123, "regions": []}},
    "Supervisely": {"description": "", "size": {"height": 48, "width": 64}, "objects": []},
    "Label Studio": [{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.png"}}],
    "CreateML": [{"image": "a.png", "annotations": [{"label": "cat", "coordinates": {}}]}],
    "Detectron2": [{"file_name": "a.png", "image_id": 1, "annotations": []}],
    "COCO's results": [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.9}],
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_files_of_other_tools_are_called_by_their_name(told, name):
    write(Path("theirs.json"), OTHER_FORMATS[name])
    for words in (("data", "check"), ("label",)):
        code, said = told(*words, "theirs.json")
        assert code == 3
        assert f"and looks like {name}" in said
        assert "export it as COCO instances" in said


def test_a_table_of_boxes_is_no_coco_file(told):
    Path("boxes.csv").write_text("filename,width,height,class,xmin,ymin,xmax,ymax\n")
    for words in (("data", "check", "boxes.csv"), ("label", "boxes.csv")):
        code, said = told(*words)
        assert (code, "boxes.csv: is not a COCO file (.json)" in said) == (2, True)


def test_for_a_folder_with_a_coco_file_the_message_names_that_file(told):
    write(Path("train/_annotations.coco.json"), coco([image()], [annotation()]))
    code, said = told("label", "train")
    assert (code, "named itself, perhaps train/_annotations.coco.json" in said) == (3, True)


def test_cvat_s_own_xml_is_named_as_such(told):
    picture(Path("a.png"))
    Path("annotations.xml").write_text('<annotations><image id="0" name="a.png"/></annotations>')
    code, said = told("label", ".")
    assert (code, "it is of CVAT for images" in said) == (3, True)


@pytest.mark.parametrize(
    ("start", "is_what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC picture; .* (store it as JPEG or PNG)"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of Git LFS; .*git lfs pull",
        ),
        (b"<!DOCTYPE html><html>", "is a web page; .* (download the picture again)"),
        (bytes(128) + b"DICM", "is a DICOM file; .* (store its pixels as PNG"),
        (
            b"MM\0*\0\0\0\x08",
            "is a TIFF that is cut off, .* store one or three of its channels as PNG)",
        ),
    ],
)
def test_files_that_only_have_the_name_of_a_picture_are_called_what_they_are(told, start, is_what):
    Path("a.png").write_bytes(start + bytes(100))
    write(Path("gt.json"), coco([image()], [annotation()]))
    code, said = told("data", "check", "gt.json")
    first, last = is_what.split(".*")
    assert (code, first in said, last in said) == (3, True, True)


def test_a_link_that_leads_nowhere_is_a_missing_file(told):
    picture(Path("a.png"))
    Path("b.png").symlink_to("gone.png")
    entries = [annotation(), annotation(2, image_id=2)]
    write(Path("gt.json"), coco([image(), image(2, "b.png")], entries))
    code, said = told("data", "check", "gt.json")
    assert (code, "does not exist; every listed image needs its file" in said) == (3, True)


@pytest.mark.parametrize(("wrong", "expected"), [(2, 3), (1, 0)])
def test_labels_are_not_made_where_most_boxes_are_outside_their_image(told, wrong, expected):
    picture(Path("a.png"))
    boxes = [[50, 40, 30, 60]] * wrong + [BOX] * (3 - wrong)
    entries = [annotation(i, box, masked=False) for i, box in enumerate(boxes, start=1)]
    write(Path("gt.json"), coco([image()], entries))
    code, said = told("label", "gt.json", "--source", "box", "--output", "out")
    assert code == expected
    assert ("2 of 3 annotations are wrong" in said) == (wrong == 2)
    assert Path("out/labels.coco.json").exists() == (wrong == 1)


def test_an_import_reports_odd_boxes_and_refuses_fractions(told):
    def voc(x1: float, x2: float) -> str:
        box = f"<xmin>{x1}</xmin><ymin>{x1}</ymin><xmax>{x2}</xmax><ymax>{x2}</ymax>"
        return f"<object><name>cat</name><bndbox>{box}</bndbox></object>"

    picture(Path("a.png"))
    Path("a.xml").write_text(f"<annotation>{voc(0.1, 0.5)}</annotation>")
    code, said = told("data", "import", ".", "--from", "voc", "--output", "out")
    assert (code, "these look like shares of width and height" in said) == (3, True)
    assert not Path("out").exists()
    Path("a.xml").write_text(f"<annotation>{voc(4, 20) * 2}</annotation>")
    code, said = told("data", "import", ".", "--from", "voc", "--output", "out")
    assert (code, "1 boxes that repeat another" in said) == (0, True)


def test_corners_in_labels_of_yolo_are_not_imported(told):
    picture(Path("images/a.png"))
    Path("classes.txt").write_text("cat\n")
    Path("labels").mkdir()
    corners = ["0 0.1 0.1 0.9 0.9", "0 0.2 0.2 0.8 0.8", "0 0.1 0.5 0.6 0.9"]
    Path("labels/a.txt").write_text("\n".join(corners))
    code, said = told("data", "import", ".", "--from", "yolo", "--output", "out")
    assert (code, "3 of 3 annotations are wrong" in said) == (3, True)
    assert not Path("out").exists()


@pytest.mark.parametrize(("right", "wrong"), [(1, 0), ("XYWH_ABS", "XYXY_ABS")])
def test_boxes_that_detectron2_calls_corners_are_refused(told, right, wrong):
    picture(Path("a.png"))
    entries = [annotation(i, masked=False, bbox_mode=mode) for i, mode in ((1, right), (2, wrong))]
    write(Path("gt.json"), coco([image()], entries))
    for words in (("data", "check", "gt.json"), ("label", "gt.json", "--source", "box")):
        code, said = told(*words)
        assert (code, f"has 1 boxes of bbox_mode {wrong!r}" in said) == (3, True)
    write(Path("gt.json"), coco([image()], entries[:1]))
    code, said = told("data", "check", "gt.json")
    assert (code, "bbox_mode" in said) == (0, False)


def test_classes_that_are_not_learnt_are_reported_before_anything_is_trained(told):
    picture(Path("a.png"))
    for name, classes in (("gt", ("cat", "dog")), ("some", ("dog", "bird"))):
        write(Path(f"{name}.json"), coco([image()], [annotation(masked=False)], classes))
    code, said = told("label", "gt.json", "--train-on", "some.json", "--plan", "--minutes", "1")
    assert code == 0
    assert "warning: some.json: knows 1 of 2 classes not (cat)" in said


def test_polygons_of_voc_files_are_not_lost_in_silence(told):
    outline = "<polygon><x1>4</x1><y1>4</y1><x2>20</x2><y2>4</y2><x3>20</x3><y3>20</y3></polygon>"
    box = "<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    picture(Path("a.png"))
    Path("a.xml").write_text(
        f"<annotation><object><name>cat</name>{outline}{box}</object></annotation>"
    )
    code, said = told("data", "import", ".", "--from", "voc", "--output", "out")
    assert (code, "the polygons of 1 objects are left out" in said) == (0, True)
