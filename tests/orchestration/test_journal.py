"""The journal keeps every event, whatever a kill tore."""

from orchestration.journal import Journal


def test_events_are_read_in_the_order_they_were_written(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.read() == []
    journal.write("trial_start", trial="00", values={"qam.k_top": 5}, seed=1)
    journal.write("trial_end", trial="00", status="failed", cause="step 3: the loss is nan")
    events = Journal(journal.path).read()
    assert [event["event"] for event in events] == ["trial_start", "trial_end"]
    assert events[0]["values"] == {"qam.k_top": 5}
    assert events[0]["time"] <= events[1]["time"]


def test_a_torn_line_costs_only_itself(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("trial_start", trial="00")
    with journal.path.open("ab") as file:
        file.write(b'{"time": 1, "eve')
    journal.write("trial_end", trial="00")
    assert [event["event"] for event in journal.read()] == ["trial_start", "trial_end"]
