"""Objects of a store by their keys: S3, Google Cloud Storage and Azure through one library, obstore.

Credentials come from the environment, as each cloud's own tools take them, and go nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from boxseg.errors import ConfigError, StorageError
from orchestration.secret_text import hide
from orchestration.store.places import address_of, endpoint

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")

RETRIES = 6
"""How often the library repeats a request: after 0.1, 0.2, 0.4 s and so on."""
RETRY_S = 20.0
"""After this time the library does not repeat a request [s]; callers repeat uploads."""
CUTS = 5
"""How often a request is repeated whose answer was cut off."""
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
"""What stores answer if the bucket does not exist."""
REQUEST_S = 60
"""How long one request may take [s]."""
PART_BYTES = 2**24
"""Larger files are sent in parts of this size, each one a request."""
PARTS_AT_ONCE = 4
"""Parts of a large file that are sent at the same time."""
PAUSE_S = (0.5, 10.0)
"""Shortest and longest time between two tries of `patiently` [s]."""

logger = logging.getLogger("boxseg.store")


class StoreAwayError(StorageError):
    """The store does not answer or is too busy; it may answer later."""


class CutError(StoreAwayError):
    """The connection was cut in the middle of an answer; the library does not repeat such requests."""


class TakenError(Exception):
    """The object to write exists already, or the one to replace has changed."""


def _again(read: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
    """Repeat a request that only reads, a few times, if its answer was cut off."""

    @functools.wraps(read)
    def ask(*arguments: Asked.args, **options: Asked.kwargs) -> Answer:
        for _ in range(CUTS):
            with contextlib.suppress(CutError):
                return read(*arguments, **options)
        return read(*arguments, **options)

    return ask


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Changes whenever the object does."""


class Store:
    """One bucket. Every method makes one request, or a few for large files and long listings.

    All raise:
        StoreAwayError: the store does not answer, for now.
        StorageError: it refuses access, or there is no such bucket.
    """

    def __init__(self, address: str) -> None:
        """Makes no request; `address` has a scheme and a bucket, as in `s3://bucket`.

        Raises:
            ConfigError: obstore is not installed.
        """
        self.address = address
        self._objects = _open(address, endpoint(), os.getpid())

    @_again
    def read(self, key: str) -> tuple[bytes, str]:
        """Content and etag of a small object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with self._naming_faults(key):
            found = self._objects.get(key)
            return bytes(found.bytes()), str(found.meta["e_tag"])

    def write(
        self, key: str, content: bytes, *, only_new: bool = False, instead_of: str | None = None
    ) -> str:
        """Write a small object; returns its etag.

        Args:
            key: Its name.
            content: All of it.
            only_new: Refuse to replace an object.
            instead_of: Etag that the object to replace must have.

        Raises:
            TakenError: the object exists already, or has another etag.
        """
        mode: Any = "create" if only_new else {"e_tag": instead_of} if instead_of else "overwrite"
        with self._naming_faults(key):
            return str(self._objects.put(key, content, mode=mode)["e_tag"])

    def upload(self, key: str, path: Path) -> str:
        """Write an object from a file, a large one in parts; returns its etag.

        Raises:
            FileNotFoundError: the file is gone.
        """
        with self._naming_faults(key):
            written = self._objects.put(
                key, path, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )
        return str(written["e_tag"])

    @_again
    def download(self, key: str, path: Path) -> str:
        """Write an object to a file, piece by piece; returns its etag.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with self._naming_faults(key):
            found = self._objects.get(key)
            with path.open("wb") as file:
                for piece in found.stream(min_chunk_size=2**22):
                    file.write(piece)
            return str(found.meta["e_tag"])

    @_again
    def entry(self, key: str) -> Entry:
        """Size and etag of one object.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._naming_faults(key):
            found = self._objects.head(key)
        return Entry(key, found["size"], str(found["e_tag"]))

    @_again
    def entries(self, prefix: str) -> list[Entry]:
        """All objects below a prefix; a request for each thousand."""
        with self._naming_faults(prefix):
            found = self._objects.list(prefix).collect()
        return [Entry(each["path"], each["size"], str(each["e_tag"])) for each in found]

    @_again
    def folders(self, prefix: str) -> list[str]:
        """Names just below a prefix that have objects below them."""
        with self._naming_faults(prefix):
            found = self._objects.list_with_delimiter(prefix)
        return [Path(each).name for each in found["common_prefixes"]]

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; missing ones are no error."""
        if keys:
            with self._naming_faults(keys[0]), contextlib.suppress(FileNotFoundError):
                self._objects.delete(list(keys))

    @contextlib.contextmanager
    def _naming_faults(self, key: str) -> Iterator[None]:
        from obstore import exceptions as faults

        try:
            yield
        except (faults.AlreadyExistsError, faults.PreconditionError) as error:
            raise TakenError(key) from error
        except (FileNotFoundError, faults.GenericError) as error:
            if any(word in str(error) for word in NO_BUCKET):
                raise StorageError(
                    f"{self.address}: there is no such bucket; make it, or name another storage"
                ) from error
            if isinstance(error, FileNotFoundError):
                raise
            raise self._away(key, error) from error
        except (faults.PermissionDeniedError, faults.UnauthenticatedError) as error:
            raise StorageError(
                f"{self.address}/{key}: the store refuses access ({_cause(error)}); check the credentials in the "
                "environment and their rights to read, write and list"
            ) from error
        except faults.BaseError as error:
            raise self._away(key, error) from error

    def _away(self, key: str, error: Exception) -> StoreAwayError:
        server = f" and {hide(endpoint() or '')}" if endpoint() else ""
        kind = CutError if "body error" in str(error) else StoreAwayError
        return kind(
            f"{self.address}/{key}: the store does not answer as it should ({_cause(error)}); check the "
            f"network{server}, or try again later"
        )


def patiently(
    ask: Callable[[], Answer], patience_s: float, stop: threading.Event | None = None
) -> Answer:
    """Repeat a request until the store answers.

    Raises:
        StoreAwayError: it did not answer in that time, or a stop was asked for.
    """
    stop = stop or threading.Event()
    began, pause = time.monotonic(), PAUSE_S[0]
    while True:
        try:
            return ask()
        except StoreAwayError as error:
            if time.monotonic() - began > patience_s or stop.is_set():
                raise
            logger.warning("%s; trying again", error)
        stop.wait(pause)
        pause = min(2 * pause, PAUSE_S[1])


def place_of(folder: Path) -> tuple[Store, str]:
    """Store and prefix (with a slash at its end) of a folder in a mirror.

    Raises:
        ConfigError: obstore is not installed.
    """
    address = address_of(folder)
    assert address is not None, f"{folder} is in no mirror"
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    return Store(f"{scheme}://{bucket}"), f"{key}/" if key else ""


@functools.lru_cache
def _open(address: str, server: str | None, process: int) -> ObjectStore:
    """The library's object for a server; each process has its own, as its threads do not survive a fork."""
    try:
        from obstore.store import from_url
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"storage: {address} needs the package obstore; in boxseg's folder: "
            "pip install -c constraints.txt -e '.[store]'"
        ) from error
    # servers of a private network may have no certificate, unlike those of the clouds
    is_plain = (server or "").startswith("http://")
    return from_url(
        address,
        client_options={
            "allow_http": is_plain,
            "timeout": timedelta(seconds=REQUEST_S),
            # a missing server is noticed soon, however long a request may take
            "connect_timeout": timedelta(seconds=5),
        },
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_S),
            "backoff": {"max_backoff": timedelta(seconds=5)},
        },
        **_credentials(address),
    )


def _credentials(address: str) -> dict[str, Any]:
    """A source of credentials that only Amazon's own library knows: profiles, single sign-on."""
    in_files = Path("~/.aws").expanduser().is_dir() and "AWS_ACCESS_KEY_ID" not in os.environ
    if not address.startswith("s3://") or not ("AWS_PROFILE" in os.environ or in_files):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ModuleNotFoundError:
        return {}
    with contextlib.suppress(ValueError):  # there are no such credentials
        return {"credential_provider": Boto3CredentialProvider()}
    return {}


def _cause(error: Exception) -> str:
    """The first line of the library's error text; the others are for its developers."""
    text = " ".join(str(error).splitlines()[0].split())
    # without duration and number of tries, which differ each time
    return hide(
        re.sub(r" in [\d.]+\w*s(, after \d+ retries, .*?retry_timeout: \S+)?", "", text)[:300]
    )
