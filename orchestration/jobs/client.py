"""boxseg commands as jobs on a Ray cluster: submit, look, follow, stop; over Ray's Jobs API."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import shlex
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from boxseg.errors import ConfigError
from orchestration.connect.access import ANSWER_S, choose_mode, is_loopback, read_token
from orchestration.errors import ExitCode, ResourceError
from orchestration.jobs.upload import Upload
from orchestration.record.run_folder import new_id
from orchestration.record.scratch import scratch_folder
from orchestration.store.places import address_of, shown

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_S = 0.5
"""Time between two looks at a job [s]."""
PATIENCE_S = 60.0
"""How long a cluster may be silent while a job is followed, or without an agent for a new one [s]."""
STOP_S = 90
"""How long a job may take to save its state before Ray kills it [s]; longer than a run's own grace."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    started: float | None
    """Seconds since 1970."""
    ended: float | None
    exit_code: int | None
    message: str
    storage: str | None
    """Folder with the job's state and log, as the cluster sees it."""

    @property
    def exit_code_to_pass_on(self) -> int:
        """Exit code for a command that waited for the job: the job's own, or INTERRUPTED if it was stopped."""
        if self.status == "STOPPED":
            return ExitCode.INTERRUPTED
        if self.status == "SUCCEEDED":
            return ExitCode.DONE
        return self.exit_code or ExitCode.FAILED


class Cluster:
    """A Ray cluster that takes jobs.

    Args:
        address: `http(s)://HOST:PORT` of its dashboard; None: RAY_ADDRESS, else port 8265 of this machine.
        insecure: Accept a cluster on another machine that asks for no token.

    Raises:
        ConfigError: the address is not that of a dashboard.
        ResourceError: the cluster does not answer or refuses the connection, or it is on another machine and no token
                is set.
    """

    def __init__(self, address: str | None = None, *, insecure: bool = False) -> None:
        address = address or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS
        self.address = _dashboard_address(address)
        self._mode = choose_mode(self.address, insecure=insecure)
        _check_access(self.address, read_token() if self._mode == "token" else None)
        self._client = _make_client(self.address)

    def check_job_storage(self, storage: Path, uploaded: Path) -> None:
        """Refuse a storage inside the uploaded folder, unless the cluster is this machine.

        Raises:
            ConfigError: names the storage and the way out.
        """
        below = address_of(storage) is None and storage.is_relative_to(uploaded)
        if below and not is_loopback(self.address):
            raise ConfigError(
                f"storage: {storage} lies in the folder that is uploaded, which nodes elsewhere "
                "do not have; name a folder that every node sees with --storage DIR"
            )

    def submit(
        self,
        upload: Upload,
        arguments: list[str],
        *,
        name: str,
        folder: Path,
        python: str = "python",
    ) -> str:
        """Upload files and start a boxseg command among them; gives the job's id.

        Args:
            upload: Files that the command runs among.
            arguments: The command, as in `["sweep", "EXP.yaml"]`; paths relative to the upload's folder.
            name: Start of the id.
            folder: Folder on the cluster's storage for the folders of jobs, which hold state and log.
            python: Interpreter on the cluster that has boxseg and Ray.
        """
        # Ray refuses an id that it has had before
        id = f"{name}-{new_id()}"
        entry = [python, "-u", "-m", "orchestration.jobs.entry", shown(folder / id), *arguments]
        # Ray itself gives a job 3 s between SIGTERM and SIGKILL
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        if self._mode == "disabled":
            variables["RAY_AUTH_MODE"] = "disabled"
        metadata = {
            "command": shlex.join(["boxseg", *arguments]),
            "storage": shown(folder / id),
        }
        deadline = time.monotonic() + PATIENCE_S
        with scratch_folder("upload") as scratch, _resource_errors(self.address):
            # given a folder, Ray would leave out what .gitignore and .rayignore name
            archive = scratch / "files.zip"
            upload.pack(archive)
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=shlex.join(entry),
                        submission_id=id,
                        runtime_env={"working_dir": str(archive), "env_vars": variables},
                        metadata=metadata,
                    )
                    return id
                except RuntimeError as error:
                    # just after a cluster has started, no agent takes jobs yet
                    if "No available agent" not in str(error) or time.monotonic() > deadline:
                        raise
                time.sleep(POLL_S)

    def jobs(self) -> list[Job]:
        """All jobs that were submitted, newest first."""
        with _resource_errors(self.address):
            listed = self._client.list_jobs()
        # without a submission id it is a driver that somebody started by hand
        jobs = [_job(details) for details in listed if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0, reverse=True)

    def job(self, id: str) -> Job:
        """One job, by its id or the unique start of it.

        Raises:
            ConfigError: no job or more than one fits.
        """
        jobs = {job.id: job for job in self.jobs()}
        fits = find_ids(jobs, id)
        if len(fits) != 1:
            found = f"fits {', '.join(fits[:5])}" if fits else "fits no job"
            raise ConfigError(f"{id}: {found} of {self.address}; `boxseg jobs ls` lists all")
        return jobs[fits[0]]

    def logs(self, id: str) -> str:
        """All that a job has printed so far."""
        with _resource_errors(self.address):
            return self._client.get_job_logs(id)

    def follow(self, id: str, write: Callable[[str], Any]) -> Job:
        """Pass on what a job prints until it ends; short losses of the connection are bridged.

        Raises:
            ResourceError: the cluster has been silent for a minute; the job may still run.
        """
        written, heard = 0, time.monotonic()
        while True:
            try:
                job = self.job(id)
                if job.status != "PENDING":
                    for text in self._tail(id, skip=written):
                        written += len(text)
                        heard = time.monotonic()
                        write(text)
                    job = self.job(id)
                if job.status in ENDED:
                    # whatever the tail has not passed on
                    write(self.logs(id)[written:])
                    return job
                heard = time.monotonic()
            except (ResourceError, OSError, RuntimeError) as error:
                if time.monotonic() - heard > PATIENCE_S:
                    raise ResourceError(
                        f"{self.address} has not answered for {PATIENCE_S:.0f} s: {error}; {id} "
                        f"may still run: try `boxseg jobs logs {id} --follow` later"
                    ) from error
            time.sleep(POLL_S)

    def stop(self, id: str) -> Job:
        """Ask a job to save its state and end; waits for that.

        Raises:
            ResourceError: it still runs although Ray should have killed it by now.
        """
        with _resource_errors(self.address):
            self._client.stop_job(id)
        deadline = time.monotonic() + STOP_S + 30
        while (job := self.job(id)).status not in ENDED:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{id} is still {job.status} {STOP_S + 30} s after it should have stopped; see "
                    f"`boxseg jobs logs {id}` and ask again, or end its process on the cluster"
                )
            time.sleep(POLL_S)
        return job

    def _tail(self, id: str, *, skip: int) -> Iterator[str]:
        """What a job prints, from a number of characters on, as long as the connection lasts and the job runs."""
        # one event loop for all chunks, as the connection belongs to it
        with asyncio.Runner() as runner:
            chunks: Any = self._client.tail_job_logs(id)
            try:
                while (text := runner.run(_next(chunks))) is not None:
                    # each new connection gets the log from its beginning
                    skipped = min(skip, len(text))
                    skip -= skipped
                    yield text[skipped:]
            finally:
                runner.run(chunks.aclose())


def find_ids(ids: Collection[str], start: str) -> list[str]:
    """The ids that begin with `start`; a whole id means that one alone, even if others begin with it."""
    return [start] if start in ids else [id for id in ids if id.startswith(start)]


async def _next(chunks: Any) -> str | None:
    return await anext(chunks, None)


def _dashboard_address(address: str) -> str:
    given = address if "://" in address else f"http://{address}"
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        way_out = f"give its address, as in {DEFAULT_ADDRESS}"
        raise ConfigError(f"{address}: jobs go to Ray's dashboard; {way_out}")
    return given.rstrip("/")


def _check_access(address: str, token: str | None) -> None:
    """Ask the dashboard for its version: Ray's own client would wait for minutes, and say less."""
    parts = urlsplit(address)
    is_secure = parts.scheme == "https"
    connection_type = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
    connection = connection_type(parts.hostname or "", parts.port, timeout=ANSWER_S)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request("GET", "/api/version", headers=headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise ResourceError(
            f"no Ray dashboard answers at {address} ({error or type(error).__name__}); start the "
            "cluster, or name its dashboard with --address or RAY_ADDRESS, as in "
            f"{DEFAULT_ADDRESS}"
        ) from error
    finally:
        connection.close()
    if status in (401, 403):
        reason = "does not know our token" if token else "wants a token, and there is none"
        way_out = "give the cluster's own in RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
        raise ResourceError(f"{address} refused the request: it {reason}; {way_out}")
    if status != 200:
        message = f"{address} answers with HTTP status {status}, unlike a Ray dashboard"
        raise ResourceError(f"{message}; check the address")


def _make_client(address: str) -> JobSubmissionClient:
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # otherwise Ray would take RAY_ADDRESS instead
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk

    for module in (dashboard_sdk, sdk):
        # they log each upload and each lost connection, which boxseg reports itself
        module.logger.setLevel(logging.ERROR)
    with _resource_errors(address):
        return sdk.JobSubmissionClient(address)


@contextlib.contextmanager
def _resource_errors(address: str) -> Iterator[None]:
    """Raise errors of Ray's client as a ResourceError that names the cluster."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise ResourceError(
            f"the cluster at {address} did not do it: {str(error).strip()[-2000:]}; `boxseg jobs "
            "ls` tells whether it answers, and which jobs it has"
        ) from error


def _job(details: Any) -> Job:
    about = details.metadata or {}
    # an enum or a text, depending on Ray's version
    status = getattr(details.status, "value", details.status)
    return Job(
        id=details.submission_id,
        status=str(status),
        command=about.get("command", details.entrypoint),
        # Ray counts milliseconds
        started=details.start_time and details.start_time / 1000,
        ended=details.end_time and details.end_time / 1000,
        exit_code=details.driver_exit_code,
        message=(details.message or "").strip(),
        storage=about.get("storage"),
    )
