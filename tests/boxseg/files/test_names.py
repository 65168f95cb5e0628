"""Which files of a folder belong to the user."""

import pytest

from boxseg.files.names import OWN_FOLDERS, names_below


@pytest.mark.parametrize("files", OWN_FOLDERS)
@pytest.mark.parametrize("place", [".", "labels/photos"])
def test_pictures_written_by_an_earlier_command_do_not_belong_to_a_data_set(
    tmp_path, files, place
):
    for folder in OWN_FOLDERS[files]:
        names = [f"{folder}/a.png", f"{place}/{folder}/crops/b.png", "a.png"]
        for name in names + [f"{place}/{file}" for file in files]:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = {name for name in names_below(tmp_path) if name.endswith(".png")}
    is_elsewhere = place != "."
    beside = {f"{folder}/a.png" for folder in OWN_FOLDERS[files] if is_elsewhere}
    assert found == {"a.png", *beside}


def test_a_users_folder_is_not_skipped_for_its_name_alone(tmp_path):
    for name in ("labels.jsonl", "metrics.jsonl", "yolo/images/a.png", "samples/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {"yolo/images/a.png", "samples/b.png"} <= set(names_below(tmp_path))
