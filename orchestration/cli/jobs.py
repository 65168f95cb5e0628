"""`boxseg jobs`: the same commands on a Ray cluster."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxseg.errors import ConfigError
from orchestration.cli.options import AsJson, flag, optional, storage_option
from orchestration.cli.output import print_json, print_pairs, print_table, say
from orchestration.secret_text import hide
from orchestration.store.mirror import pull_below
from orchestration.store.places import address_of, shown
from orchestration.words import show_duration

if TYPE_CHECKING:
    from orchestration.config.spec import RunSpec
    from orchestration.jobs.client import Cluster, Job
    from orchestration.jobs.upload import Upload

app = typer.Typer(
    help="Run boxseg commands on a Ray cluster.", no_args_is_help=True, rich_markup_mode=None
)

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ray's dashboard, as in http://127.0.0.1:8265; otherwise RAY_ADDRESS, else this machine's.",
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Accept a cluster on another machine without a token.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, or its first letters.")]
Command = Annotated[
    list[str], typer.Argument(metavar="COMMAND...", help="A boxseg command, as in: sweep EXP.yaml")
]
ClusterStorage = Annotated[
    Path | None,
    storage_option("Folder for runs and logs that every node sees, or s3://BUCKET/PREFIX."),
]
JOBS = ".jobs"
"""Folder in the storage with a folder for each job."""
BEGINNINGS = ("resume", "auto_resume", "new", "retry_failed", "more")
"""Options of train and sweep that say how they begin."""
LOCAL = ("jobs", "ui")
"""Commands that make no sense as a job."""


# so that options behind the command's name belong to the command
@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    context: typer.Context,
    command: Command,
    address: Address = None,
    storage: ClusterStorage = None,
    working_dir: Path | None = optional(
        "DIR", "Folder to upload; outside of git, all files in it."
    ),
    allow: list[Path] | None = optional(
        "FILE", "Upload it although it looks like a secret; repeatable."
    ),
    max_mb: float = typer.Option(100, min=0, help="Refuse to upload more than this [MB]."),
    python: str = typer.Option("python", metavar="PROGRAM", help="Interpreter on the cluster."),
    no_wait: bool = flag("--no-wait", "Print the job's id and leave."),
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Upload the files that git tracks here, run a boxseg command among them, and follow it to its end.

    Options for the job come before the command, those of the command after it. The exit code is the command's.
    """
    from orchestration.connect.access import read_token
    from orchestration.jobs.upload import check_upload, find_files

    root = (working_dir or Path.cwd()).absolute()
    upload = find_files(root, tracked_only=working_dir is None)
    for left_out, reason in upload.left_out.items():
        say(f"warning: not uploaded: {left_out}: {reason}")
    name, folder, arguments = _prepare(context, command, upload, storage)
    # before the cluster is asked for anything
    check_upload(upload, limit=int(max_mb * 1e6), allowed=allow or [], token=read_token())
    cluster = _connect(address, insecure)
    cluster.check_job_storage(folder, root)
    listing = ", ".join(f"{path} {size / 1e6:.2f} MB" for path, size in upload.largest())
    say(
        f"uploading {len(upload.sizes)} files, {upload.total / 1e6:.2f} MB; the largest: {listing}"
    )
    id = cluster.submit(upload, arguments, name=name, folder=folder / JOBS, python=python)
    say(f"job {id}; state and log are kept in {shown(folder / JOBS / id)}")
    if not no_wait:
        _follow(cluster, id, as_json)
    elif as_json:
        print_json(cluster.job(id))
    else:
        # the id alone, for scripts
        typer.echo(id)


@app.command("ls")
def list_all(address: Address = None, insecure: Insecure = False, as_json: AsJson = False) -> None:
    """List the jobs of a cluster, newest first."""
    jobs = _connect(address, insecure).jobs()
    if as_json:
        print_json(jobs)
        return
    rows = [
        (job.id, job.status, job.exit_code, _clock(job.started), _took(job), job.command)
        for job in jobs
    ]
    print_table(("id", "status", "exit", "began", "took", "command"), rows)


@app.command()
def status(
    job: JobId,
    address: Address = None,
    storage: ClusterStorage = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Show a job; with --storage from the files there, which also works after the cluster's end."""
    if storage is not None:
        from orchestration.record.records import read_record

        way_out = "`boxseg jobs status` without --storage asks the cluster"
        about = read_record(_kept_file(storage, job, "job.json"), dict[str, Any], way_out=way_out)
        print_json(about) if as_json else print_pairs(list(about.items()))
    else:
        _show(_connect(address, insecure).job(job), as_json)


@app.command()
def logs(
    job: JobId,
    follow: bool = typer.Option(
        False, "--follow", "-f", help="Go on until the job ends; exit with its code."
    ),
    address: Address = None,
    storage: ClusterStorage = None,
    insecure: Insecure = False,
) -> None:
    """Print a job's output; with --storage from the files there, which also works after the cluster's end."""
    if storage is not None:
        log = _kept_file(storage, job, "log.txt")
        # a job prints whatever bytes it likes
        typer.echo(log.read_text(encoding="utf-8", errors="replace"), nl=False)
        return
    cluster = _connect(address, insecure)
    id = cluster.job(job).id
    if follow:
        _follow(cluster, id, as_json=False)
    else:
        typer.echo(cluster.logs(id), nl=False)


@app.command()
def stop(
    job: JobId, address: Address = None, insecure: Insecure = False, as_json: AsJson = False
) -> None:
    """Ask a job to save its state and end, and wait for that."""
    cluster = _connect(address, insecure)
    _show(cluster.stop(cluster.job(job).id), as_json)


@app.command(context_settings={"allow_interspersed_args": False})
def manifest(
    context: typer.Context,
    command: list[str] | None = typer.Argument(
        None, metavar="[COMMAND...]", help="train or sweep, as in: sweep EXP.yaml"
    ),
    name: str | None = typer.Option(None, help="Name in Kubernetes; otherwise the experiment's."),
    image: str | None = typer.Option(
        None, help="Image of all nodes; otherwise boxseg:cpu or boxseg:gpu."
    ),
    nodes: int = typer.Option(1, min=1, help="Worker nodes."),
    max_nodes: int | None = typer.Option(
        None, min=1, help="Most worker nodes while trials wait; otherwise --nodes."
    ),
    cpus: int | None = typer.Option(
        None, min=1, help="CPU cores of each node; otherwise what one run needs."
    ),
    gpus: int | None = typer.Option(
        None, min=0, help="GPUs of each node; otherwise what one run needs."
    ),
    memory: str = typer.Option("16Gi", help="Memory of each node."),
    claim: str | None = typer.Option(
        None,
        help="Volume claim (ReadWriteMany) for the storage, or none; otherwise boxseg-storage, or none if the "
        "experiment's storage is an object store.",
    ),
    retries: int | None = typer.Option(
        None, min=0, help="How often a failed job is started again to go on; otherwise 2."
    ),
    site: Path | None = optional(
        "FILE", "What the cluster requires of everything (docs/cluster.md)."
    ),
) -> None:
    """Print a KubeRay RayJob with a cluster of its own for a command; without one, a RayCluster that stays."""
    from orchestration.config.spec import ResourcesConfig
    from orchestration.jobs import manifest as kuberay
    from orchestration.jobs.site import Site, read_site

    spec: RunSpec | None = None
    experiment = Path()
    if command:
        if command[0] not in ("train", "sweep"):
            raise ConfigError(
                f"jobs manifest: {command[0]} is not for a RayJob; use train or sweep, or no command"
            )
        typed = _parse(context, command)
        experiment = _experiment(typed)
        spec = _load(command[0], experiment, typed["overrides"] or [])
        retries = _retries(typed, retries)
    run = spec.resources if spec else ResourcesConfig()
    # by default a node holds a whole run
    cpus = cpus or math.ceil(run.workers * run.cpus_per_worker)
    gpus = math.ceil(run.workers * run.gpus_per_worker) if gpus is None else gpus
    image = image or f"boxseg:{'gpu' if gpus else 'cpu'}"
    claim = _claim(claim, spec, experiment)
    cluster = kuberay.Nodes(image, nodes, max_nodes or nodes, cpus, gpus, memory, claim)
    rules = Site() if site is None else read_site(site)
    kuberay.check_nodes(cluster, rules, spec.resources if spec else None)
    if command and spec:
        documents = kuberay.make_job(
            name or spec.name,
            command,
            experiment,
            cluster,
            rules,
            storage=address_of(spec.storage) or str(kuberay.STORAGE),
            retries=retries or 0,
        )
    else:
        documents = kuberay.make_cluster(name or "boxseg", cluster, rules)
    typer.echo(kuberay.to_yaml(documents), nl=False)


def _retries(typed: dict[str, Any], retries: int | None) -> int:
    """How often a failed job is started again; never if an option says how it begins, which would apply each time."""
    begins_otherwise = [name for name in BEGINNINGS if typed.get(name)]
    if retries and begins_otherwise:
        option = begins_otherwise[0].replace("_", "-")
        raise ConfigError(
            f"jobs manifest: --retries {retries} with --{option}, which would do the same again each time; leave "
            "out one of them"
        )
    if retries is None:
        return 0 if begins_otherwise else 2
    return retries


def _claim(claim: str | None, spec: RunSpec | None, experiment: Path) -> str | None:
    """The volume claim for the storage; None if runs are in an object store, or nothing should be mounted."""
    in_store = spec is not None and address_of(spec.storage) is not None
    if claim is None:
        return None if in_store else "boxseg-storage"
    if claim == "none" and spec is not None and not in_store:
        raise ConfigError(
            f"jobs manifest: --claim none leaves no place for the runs of {experiment}; add --set "
            "storage=s3://BUCKET/PREFIX behind the experiment file, or name a claim"
        )
    return None if claim == "none" else claim


def _prepare(
    context: typer.Context, command: list[str], upload: Upload, storage: Path | None
) -> tuple[str, Path, list[str]]:
    """Name, storage and whole command of a job; refuses here what the command itself would refuse at its start."""
    typed = _parse(context, command)
    for text in command:
        # what `hide` changes is a secret
        if hide(text) != text:
            raise ConfigError(
                f"jobs submit: {hide(text)} holds a secret, which everybody on the cluster could read; give it by the "
                "environment of the cluster's nodes"
            )
    if command[0] not in ("train", "sweep"):
        if storage is None:
            raise ConfigError(
                f"jobs submit {command[0]}: say where its state and log are kept, with --storage DIR|URI"
            )
        return command[0], storage.absolute(), command
    experiment, overrides = _experiment(typed), list(typed["overrides"] or [])
    if experiment not in upload.sizes:
        raise ConfigError(
            f"{experiment} is not among the files to upload from {upload.root}; `git add` it, and name it as seen from "
            "there"
        )
    if storage is not None:
        overrides.append(f"storage={shown(storage)}")
    spec = _load(command[0], upload.root / experiment, overrides)
    folder = spec.storage.absolute()
    # the job runs in a copy of the folder, where a relative storage would be lost with it
    return spec.name, folder, [*command, "--set", f"storage={shown(folder)}"]


def _experiment(typed: dict[str, Any]) -> Path:
    if typed["experiment"] is None:
        raise ConfigError(
            "jobs: train names no experiment file, and a job needs one (--from-run knows this machine's runs alone); "
            "name one, such as a copy of that run's config.yaml"
        )
    return Path(typed["experiment"])


def _load(command: str, experiment: Path, overrides: list[str]) -> RunSpec:
    from orchestration.config.spec import load_run, load_sweep

    return (load_sweep if command == "sweep" else load_run)(experiment, overrides)


def _parse(context: typer.Context, command: list[str]) -> dict[str, Any]:
    """The values of a command's options and arguments; raises usage errors as if the command were called."""
    root = context.find_root()
    commands: Any = root.command
    known = [name for name in commands.list_commands(root) if name not in LOCAL]
    if command[0] not in known:
        raise ConfigError(
            f"jobs submit: {command[0]} cannot run as a job; choose one of {', '.join(known)}"
        )
    wanted = commands.get_command(root, command[0])
    # parses, and runs nothing
    return wanted.make_context(command[0], command[1:], parent=root).params


def _follow(cluster: Cluster, id: str, as_json: bool) -> None:
    """Pass on the job's output (to stderr where stdout is for JSON), and end with its exit code."""

    def write(text: str) -> None:
        output = sys.stderr if as_json else sys.stdout
        output.write(text)
        output.flush()

    try:
        job = cluster.follow(id, write)
    except KeyboardInterrupt:
        say(
            f"{id} goes on; `boxseg jobs logs {id} --follow` follows it again, `boxseg jobs stop {id}` ends it"
        )
        raise
    if as_json:
        print_json(job)
    if job.status != "SUCCEEDED":
        say(f"{job.id} {job.status.lower()}" + ("" if job.exit_code else f": {job.message}"))
    raise typer.Exit(job.exit_code_to_pass_on)


def _show(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    rows = [
        ("id", job.id),
        ("status", job.status),
        ("exit code", job.exit_code),
        ("command", job.command),
        ("began", _clock(job.started)),
        ("took", _took(job)),
        ("kept in", job.storage),
    ]
    print_pairs(rows)


def _connect(address: str | None, insecure: bool) -> Cluster:
    from orchestration.jobs.client import Cluster

    return Cluster(address, insecure=insecure)


def _kept_file(storage: Path, job: str, name: str) -> Path:
    """A file of the folder that a job has in the storage.

    Raises:
        ConfigError: none or several jobs begin so, or the job has no such file.
    """
    from orchestration.jobs.client import find_ids

    pull_below(storage.absolute() / JOBS, job)
    fits = find_ids([folder.name for folder in sorted((storage / JOBS).glob("*/"))], job)
    if len(fits) != 1:
        raise ConfigError(
            f"{job}: {len(fits)} jobs in {shown(storage / JOBS)} begin like this; name one"
        )
    path = storage / JOBS / fits[0] / name
    if not path.is_file():
        raise ConfigError(
            f"{path}: is missing; the job has not begun yet, or its folder was cleared"
        )
    return path


def _clock(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _took(job: Job) -> str | None:
    return show_duration((job.ended or time.time()) - job.started) if job.started else None
