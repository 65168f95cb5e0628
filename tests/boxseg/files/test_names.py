"""Which files of a folder are those of a person."""

import pytest

from boxseg.files.names import OWN_FOLDERS, names_below


@pytest.mark.parametrize("file", OWN_FOLDERS)
@pytest.mark.parametrize("place", [".", "labels/photos"])
def test_pictures_that_an_earlier_command_wrote_are_none_of_a_data_set(tmp_path, file, place):
    for folder in OWN_FOLDERS[file]:
        names = (f"{folder}/a.png", f"{place}/{folder}/crops/b.png", "a.png", f"{place}/{file}")
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = {name for name in names_below(tmp_path) if name.endswith(".png")}
    is_elsewhere = place != "."
    beside = {f"{folder}/a.png" for folder in OWN_FOLDERS[file] if is_elsewhere}
    assert found == {"a.png", *beside}
