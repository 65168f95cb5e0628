from boxseg.data.toy import ensure_toy
from boxseg.label.pace import time_update


def test_an_update_is_timed_and_nothing_is_written(tiny_config, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ensure_toy(data_root, tiny_config().data.toy)
    before = sorted(data_root.rglob("*"))
    assert 0 < time_update(tiny_config(), data_root=data_root) < 60
    assert sorted(data_root.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_a_slow_machine_is_not_kept_for_long(tiny_config, data_root, monkeypatch):
    done = []
    monkeypatch.setattr("boxseg.label.pace.LIMIT_S", 0.0)
    monkeypatch.setattr(
        "boxseg.label.pace.optimise",
        lambda trainer, batch, step: done.append(step) or {"train/loss": 0.0},
    )
    time_update(tiny_config(), data_root=data_root)
    assert done == [0]
