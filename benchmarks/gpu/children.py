"""Generators in processes of their own: one that crashes, or takes too long, stops no other."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu.place import explain

FORK = multiprocessing.get_context("fork")
"""A fork has all modules loaded. It works as long as the parent itself never uses the GPU."""


class ChildError(RuntimeError):
    """A generator failed, or its process ended; the message fits into a table."""


def in_child(
    generate: Callable[..., Iterator[Any]], *arguments: Any, seconds: float
) -> Iterator[Any]:
    """What a generator gives, from a process of its own.

    Args:
        generate: Makes the generator; what it gives is pickled.
        arguments: Its arguments.
        seconds: Time that the process has; then it is ended.

    Raises:
        ChildError: the generator raised, its process crashed, or it took too long.
    """
    until = time.monotonic() + seconds
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send_all, args=(there, generate, arguments))
    process.start()
    there.close()
    try:
        while True:
            if not here.poll(max(until - time.monotonic(), 0)):
                raise ChildError(f"stopped: it took more than {seconds:.0f} s")
            try:
                kind, value = here.recv()
            except EOFError as error:
                process.join()
                raise ChildError(f"failed: the process ended with {process.exitcode}") from error
            if kind == "end":
                process.join(timeout=5)
                return
            if kind == "error":
                raise ChildError(value)
            yield value
    finally:
        here.close()
        if process.is_alive():
            process.kill()
        process.join()


def _send_all(there: Connection, generate: Callable[..., Iterator[Any]], arguments: Any) -> None:
    try:
        for value in generate(*arguments):
            there.send(("value", value))
        there.send(("end", None))
    except Exception as error:  # told to the parent, which goes on with the next part
        traceback.print_exc()
        there.send(("error", explain(error)))
