"""Files with the same bytes are found, whatever their names."""

from boxseg.files.prints import PART_BYTES
from boxseg.files.same import find_same


def test_files_with_the_same_bytes_are_one_group(tmp_path):
    part = b"p" * PART_BYTES
    contents = {
        "a": b"one",
        "b": b"two",  # of the same size
        "c": b"one",
        "d": part + b"other" + 4 * part,
        "e": part + b"OTHER" + 4 * part,  # the same at both ends and in the middle
        "f": part + b"OTHER" + 4 * part,
        "empty": b"",
        "nothing": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to("b")
    names = [*contents, "link", "missing"]
    groups = find_same([tmp_path / name for name in names])
    assert [[path.name for path in group] for group in groups] == [
        ["a", "c"],
        ["b", "link"],
        ["e", "f"],
    ]
