import json

from orchestration.cli.app import run
from orchestration.jobs.entry import main
from orchestration.store import client, syncer

from .conftest import Machines


def test_state_and_log_of_a_job_in_a_store_can_be_read_anywhere(machines: Machines, capfd):
    with machines.on("head"):
        job = f"{machines.storage}/.jobs/toys-20260101-000000-aaaaaa"
        assert main(job, ["runs", "ls", "--storage", str(machines.folder / "none")]) == 0
    capfd.readouterr()
    with machines.on("desk"):
        assert run(["jobs", "logs", "toys", "--storage", machines.storage]) == 0
        assert "no runs under" in capfd.readouterr().out
        command = ["jobs", "status", "toys", "--storage", machines.storage, "--json"]
        assert run(command) == 0
        about = json.loads(capfd.readouterr().out)
        assert (about["status"], about["exit_code"]) == ("finished", 0)
        assert run(["jobs", "logs", "others", "--storage", machines.storage]) == 2
        assert f"0 jobs in {machines.storage}/.jobs begin" in capfd.readouterr().err


def test_a_job_keeps_its_exit_code_where_the_store_goes_away(
    machines: Machines, monkeypatch, capfd
):
    monkeypatch.setattr(client, "RETRIES", 0)
    monkeypatch.setattr(syncer, "GIVE_UP_S", 0.5)
    client._open.cache_clear()
    with machines.on("head"):
        from orchestration.jobs import entry

        def end(folder, arguments):
            machines.store.fault = "away"
            (folder / "log.txt").write_text("the end")
            return 4

        monkeypatch.setattr(entry, "_run", end)
        assert main(f"{machines.storage}/.jobs/one", []) == 4
    assert "does not have all files" in capfd.readouterr().err
