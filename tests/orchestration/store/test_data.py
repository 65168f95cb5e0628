"""Images and annotations of a store, fetched to the machine that reads them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_training import make_training
from object_store import SECRET

from boxseg.config.method import CocoSource, DataConfig, ToyConfig
from boxseg.errors import ConfigError, DataError
from orchestration.config.resolved import dump_resolved, params_of, read_resolved
from orchestration.config.spec import RunSpec
from orchestration.errors import ResourceError
from orchestration.execute.payload import Payload
from orchestration.execute.run import train_run
from orchestration.planning.preflight import check
from orchestration.store import client
from orchestration.store import data as store_data
from orchestration.store.client import Store, StoreAwayError
from orchestration.store.data import AT_ONCE, INDEX, UNFINISHED, fetch_annotations, fetch_data


def content_of(names: list[str]) -> bytes:
    """An annotation file that lists these images, of the classes of the generated set they are validated on."""
    images = [
        {"id": number, "file_name": name, "width": 8, "height": 8}
        for number, name in enumerate(names, start=1)
    ]
    box = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 1, 4, 4],
        "area": 16,
        "iscrowd": 0,
    }
    categories = [
        {"id": number, "name": name} for number, name in enumerate(ToyConfig().shapes, start=1)
    ]
    return json.dumps({"images": images, "annotations": [box], "categories": categories}).encode()


@dataclass
class Pictures:
    """A data set in the store, of files of so many bytes."""

    prefix: str
    names: list[str]
    size: int = 100

    @property
    def store(self) -> Store:
        return Store("s3://bucket")

    def upload(self) -> None:
        for name in self.names:
            self.store.write(f"{self.prefix}/images/{name}", name[-1:].encode() * self.size)
        self.list(self.names)

    def list(self, names: list[str]) -> None:
        self.store.write(f"{self.prefix}/boxes.json", content_of(names))

    @property
    def addresses(self) -> dict[str, str]:
        place = f"s3://bucket/{self.prefix}"
        return {"images": f"{place}/images", "annotations": f"{place}/boxes.json"}

    @property
    def spec(self) -> RunSpec:
        return RunSpec.model_validate({"name": "stored", "data": {"train": self.addresses}})

    @property
    def source(self) -> CocoSource:
        source = self.spec.data.train
        assert isinstance(source, CocoSource)
        return source

    def here(self) -> dict[str, bytes]:
        """The images on this machine."""
        folder = self.source.images
        files = [path for path in folder.rglob("*") if path.is_file() and path.name[:1] != "."]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def pictures(machines, monkeypatch):
    monkeypatch.setattr(store_data, "SPARE_BYTES", 0)
    monkeypatch.setattr(client, "PAUSE_S", (0.02, 0.02))
    monkeypatch.setattr(store_data, "_used", {})
    with machines.on("one"):
        made = Pictures(
            machines.storage.removeprefix("s3://bucket/"), ["a.png", "of/b.png", "c.png"]
        )
        made.upload()
        machines.store.requests.clear()
        yield made
    end_run()


def end_run() -> None:
    """What the system does for a process that ends."""
    for file in store_data._used.values():
        os.close(file)
    store_data._used.clear()


def gets(machines) -> list[str]:
    return [
        request.key.rpartition("/")[2]
        for request in machines.store.requests
        if request.method == "GET" and not request.lists
    ]


def test_addresses_of_data_stand_in_the_settings_as_they_were_written(machines, pictures):
    text = dump_resolved(pictures.spec)
    place = f"s3://bucket/{pictures.prefix}"
    assert f"images: {place}/images\n" in text
    assert f"annotations: {place}/boxes.json\n" in text
    with machines.on("two"):
        assert "two" in str(pictures.source.images)  # another cache
        assert dump_resolved(pictures.spec) == text


def test_settings_sent_to_another_machine_name_the_folders_of_that_machine(
    machines, pictures, tmp_path
):
    payload = Payload(pictures.spec, tmp_path / "run", tmp_path / "drawn")
    assert payload.here() is payload
    with machines.on("two"):
        there = payload.here()
        assert there.spec.data == pictures.spec.data != payload.spec.data
        assert there.folder == tmp_path / "run"  # a folder that all nodes see


@pytest.mark.parametrize("address", ["http://host/x", "s3://bucket/../x", "s3://bucket/a b"])
def test_wrong_addresses_of_a_store_are_refused(address):
    train = {"images": address, "annotations": "x.json"}
    with pytest.raises(ValueError, match=r"images: .* is no address that data can have"):
        RunSpec.model_validate({"name": "x", "data": {"train": train}})


def test_all_that_is_listed_is_fetched_once(machines, pictures):
    fetch_data(pictures.spec)
    whole = {"a.png": b"g" * 100, "of/b.png": b"g" * 100, "c.png": b"g" * 100}
    assert pictures.here() == whole
    assert sorted(gets(machines)) == ["a.png", "b.png", "boxes.json", "c.png"]
    machines.store.requests.clear()
    fetch_data(pictures.spec)
    # one look at the annotation file, one at the list of images
    assert [request.method for request in machines.store.requests] == ["HEAD", "GET"]
    assert gets(machines) == []


def test_a_store_that_is_far_away_answers_many_at_once(machines, pictures):
    pictures.names = [f"{number}.png" for number in range(2 * AT_ONCE)]
    pictures.upload()
    machines.store.together = threading.Barrier(AT_ONCE, timeout=60)
    fetch_data(pictures.spec)
    assert not machines.store.together.broken, "some were waited for alone"
    assert len(pictures.here()) == 2 * AT_ONCE


def test_no_secret_of_the_store_is_left_on_the_machine(machines, pictures, tmp_path):
    fetch_data(pictures.spec)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_to_check_settings_one_image_is_enough(machines, pictures):
    fetch_annotations(pictures.spec)
    assert list(pictures.here()) == ["a.png"]
    assert pictures.source.annotations.is_file()


def test_a_run_is_checked_without_its_images(machines, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(pictures.spec)  # these pictures are none, which shows where they are opened
    assert list(pictures.here()) == ["a.png"]


@pytest.mark.slow
def test_a_run_has_all_images_when_it_trains(machines, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def train(config, **options):
        seen.append(len(list(config.data.train.images.rglob("*.png"))))
        return make_training()(config, **options)

    values = {"train": {"steps": 4, "eval_every": 2}, "resources": {"runner": "inline"}}
    spec = RunSpec.model_validate(
        {"name": "stored", "data": {"train": pictures.addresses, "val": pictures.addresses}}
        | values
    )
    status = train_run(spec, train_fn=train)
    assert (status.status, seen) == ("finished", [3])
    params = params_of(read_resolved(Path(status.folder) / "config.yaml"))
    assert params["data.train.images"] == pictures.addresses["images"]


def test_faults_of_annotations_are_named_by_their_address(machines, pictures):
    pictures.store.write(f"{pictures.prefix}/boxes.json", b'{"images": []')
    with pytest.raises(DataError, match=f"^s3://bucket/{pictures.prefix}/boxes.json: "):
        check(pictures.spec)


def test_only_what_is_missing_or_damaged_is_fetched_again(machines, pictures):
    fetch_data(pictures.spec)
    folder = pictures.source.images
    (folder / "a.png").write_bytes(b"g" * 99)
    (folder / "of" / "b.png").unlink()
    (folder / f"{UNFINISHED}1").write_bytes(b"g" * 50)  # of a process that was killed
    machines.store.requests.clear()
    fetch_data(pictures.spec)
    assert sorted(gets(machines)) == ["a.png", "b.png"]
    assert {name: len(content) for name, content in pictures.here().items()} == dict.fromkeys(
        pictures.names, 100
    )
    assert not list(folder.glob(f"{UNFINISHED}*"))


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a.png": 1}', b"\xff"])
def test_a_damaged_index_costs_time_and_nothing_else(machines, pictures, damage):
    fetch_data(pictures.spec)
    (pictures.source.images / INDEX).write_bytes(damage)
    machines.store.requests.clear()
    fetch_data(pictures.spec)
    assert sorted(gets(machines)) == ["a.png", "b.png", "c.png"]


def test_files_changed_in_the_store_are_fetched_again(machines, pictures):
    fetch_data(pictures.spec)
    end_run()
    pictures.store.write(f"{pictures.prefix}/images/a.png", b"x" * 100)  # of the same size
    machines.store.requests.clear()
    fetch_data(pictures.spec)
    assert gets(machines) == ["a.png"]
    assert pictures.here()["a.png"] == b"x" * 100


def test_files_do_not_change_under_the_eyes_of_a_run(machines, pictures):
    fetch_data(pictures.spec)
    pictures.store.write(f"{pictures.prefix}/images/a.png", b"x" * 100)
    with pytest.raises(DataError, match=r"1 objects, such as a.png, have changed while a run"):
        fetch_data(pictures.spec)
    assert pictures.here()["a.png"] == b"g" * 100


def test_images_that_are_not_in_the_store_are_named_before_a_run(machines, pictures):
    pictures.list([*pictures.names, "d.png", "e.png"])
    with pytest.raises(
        DataError, match=r"data.train.images: 2 of 5 files, such as d.png, are not"
    ):
        fetch_annotations(pictures.spec)
    Store("s3://bucket").delete([f"{pictures.prefix}/boxes.json"])
    with pytest.raises(
        DataError, match=r"data.train.annotations: 1 of 1 files, such as boxes.json"
    ):
        fetch_annotations(pictures.spec)


@pytest.mark.parametrize("fault", ["cut", "throttled"])
def test_faults_of_the_network_leave_whole_files(machines, pictures, fault):
    machines.store.fault = fault
    fetch_data(pictures.spec)
    assert {name: len(content) for name, content in pictures.here().items()} == dict.fromkeys(
        pictures.names, 100
    )


def test_a_store_that_is_away_is_waited_for_by_a_run_and_not_by_a_check(
    machines, pictures, monkeypatch
):
    monkeypatch.setattr(client, "RETRY_S", 0.1)
    monkeypatch.setattr(client, "RETRIES", 0)
    client._open.cache_clear()  # so that the library's store takes these limits
    machines.store.fault = "away"
    with pytest.raises(StoreAwayError):
        fetch_annotations(pictures.spec)
    back = threading.Timer(0.5, setattr, (machines.store, "fault", "none"))
    back.start()
    began = time.monotonic()
    fetch_data(pictures.spec)
    assert time.monotonic() - began > 0.3
    assert len(pictures.here()) == 3
    client._open.cache_clear()


def test_tar_files_below_the_prefix_are_unpacked(machines, pictures):
    more = [f"shard/{number}.png" for number in range(3)]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in more:
            member = tarfile.TarInfo(f"./{name}")
            member.size = 7
            tar.addfile(member, io.BytesIO(b"picture"))
    pictures.store.write(f"{pictures.prefix}/images/0.tar", packed.getvalue())
    pictures.list([*pictures.names, *more])
    fetch_annotations(pictures.spec)  # what is in a tar file shows when it is here
    fetch_data(pictures.spec)
    assert {name: pictures.here()[name] for name in more} == dict.fromkeys(more, b"picture")
    assert "0.tar" not in pictures.here()
    machines.store.requests.clear()
    fetch_data(pictures.spec)
    assert gets(machines) == []
    (pictures.source.images / more[0]).unlink()
    fetch_data(pictures.spec)
    assert gets(machines) == ["0.tar"]
    end_run()
    pictures.list([*pictures.names, *more, "shard/3.png"])
    with pytest.raises(DataError, match=r"1 files, such as shard/3.png, are neither in"):
        fetch_data(pictures.spec)


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png"])
def test_a_tar_file_cannot_write_elsewhere(machines, pictures, name):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    pictures.store.write(f"{pictures.prefix}/images/0.tar", packed.getvalue())
    pictures.list([*pictures.names, "x.png"])
    with pytest.raises(DataError, match="would lie outside"):
        fetch_data(pictures.spec)
    assert not (pictures.source.images.parent / "outside.png").exists()


def test_unused_data_is_removed_for_room_and_data_in_use_is_kept(machines, pictures, monkeypatch):
    pictures.size = 1000
    pictures.upload()
    fetch_data(pictures.spec)
    other = Pictures(f"{pictures.prefix}-other", ["d.png", "e.png", "f.png"], size=1000)
    other.upload()
    monkeypatch.setenv("BOXSEG_DATA_GB", "0.000005")  # 5,000 bytes, of which 6,000 are wanted
    with pytest.raises(ResourceError, match=r"BOXSEG_DATA_GB allows 0.000005 GB"):
        fetch_data(other.spec)
    assert len(pictures.here()) == 3
    end_run()
    fetch_data(other.spec)
    assert len(other.here()) == 3
    assert pictures.here() == {}
    monkeypatch.setenv("BOXSEG_DATA_GB", "many")
    end_run()
    other.list(["d.png"])
    with pytest.raises(ConfigError, match="BOXSEG_DATA_GB: many is not a number"):
        fetch_data(other.spec)


FETCH = """
import sys
from pathlib import Path
from orchestration.config.spec import RunSpec
from orchestration.store.data import fetch_data
place = sys.argv[1]
train = {"images": f"{place}/images", "annotations": f"{place}/boxes.json"}
fetch_data(RunSpec.model_validate({"name": "stored", "data": {"train": train}}), print)
"""


def test_processes_of_a_machine_share_what_one_of_them_fetches(machines, pictures):
    machines.store.delay_s = 0.1
    command = [sys.executable, "-c", FETCH, f"s3://bucket/{pictures.prefix}"]
    both = [subprocess.Popen(command, text=True) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert sorted(gets(machines)) == ["a.png", "b.png", "boxes.json", "c.png"]


def test_generated_data_and_folders_ask_no_store(tmp_path):
    fetch_data(RunSpec(name="toys"))
    source = CocoSource(images=tmp_path, annotations=tmp_path / "boxes.json")
    fetch_data(RunSpec(name="files", data=DataConfig(train=source)))
