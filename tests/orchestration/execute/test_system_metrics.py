"""What the meter says of a process that works and of one that waits."""

import subprocess
import sys
import time

import psutil

from orchestration.execute.system_metrics import SystemMeter


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def test_work_of_the_process_counts_and_waiting_does_not():
    meter = SystemMeter(every_s=0.0)
    began = time.monotonic()
    work(0.3)
    busy = meter.sample()
    passed = time.monotonic() - began
    assert 0.2 < busy["system/cpu_percent"] / 100 * passed < 3
    time.sleep(0.3)
    assert meter.sample()["system/cpu_percent"] < busy["system/cpu_percent"]
    assert busy["system/memory_mb"] > 10


def test_children_count_as_well():
    meter = SystemMeter(every_s=0.0)
    alone = meter.sample()["system/memory_mb"]
    with subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * 200_000_000; input()"], stdin=subprocess.PIPE
    ) as child:
        while psutil.Process(child.pid).memory_info().rss < 200_000_000:
            time.sleep(0.05)
        assert meter.sample()["system/memory_mb"] > alone + 150
        child.communicate(b"\n")


def test_the_first_sample_comes_at_once_and_the_next_one_later():
    meter = SystemMeter(every_s=60.0)
    assert meter.sample()
    assert meter.sample() == {}
