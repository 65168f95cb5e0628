"""Who is told that a run or sweep has ended: a program, a web address, or both."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from boxseg.config.method import Config
from boxseg.errors import ConfigError

VARIABLE = r"\$\{(\w+)\}"
"""`${NAME}`, for which the environment has the text."""


class NotifyConfig(Config):
    """Who gets one line of result once a run or sweep has ended or failed; not kept with the run."""

    command: list[str] | None = Field(None, min_length=1)
    """Program with its arguments; no shell reads them. It gets the line as its last argument and as BOXSEG_LINE, and
    BOXSEG_STATUS, BOXSEG_KIND, BOXSEG_NAME and BOXSEG_FOLDER."""
    url: str | None = None
    """Web address that gets the line as JSON, as Slack, Mattermost and Discord take it; `${NAME}` in it stands for a
    variable of the environment, where tokens belong."""
    timeout_s: float = Field(10, gt=0, le=600)
    """How long each of the two may take [s]."""

    @field_validator("url")
    @classmethod
    def _check_scheme(cls, url: str | None) -> str | None:
        # one that begins with a variable is looked at once that is filled in
        if url is not None and not url.startswith("${"):
            _check_address(url)
        return url

    def address(self) -> str | None:
        """The web address with the variables of the environment filled in; None where none is told.

        Raises:
            ConfigError: the environment lacks one of them, or this makes no address; the text tells no values.
        """
        if self.url is None:
            return None
        names: list[str] = re.findall(VARIABLE, self.url)
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise ConfigError(
                f"notify.url: the environment has no {', '.join(missing)}; export it before the command, or leave "
                "notify.url out"
            )
        address = re.sub(VARIABLE, lambda found: os.environ[found[1]], self.url).strip()
        try:
            _check_address(address)
        except ValueError as error:
            raise ConfigError(f"notify.url: {error}") from error
        return address


def _check_address(address: str) -> None:
    """Refuse what is no web address; the text does not repeat it, as it may hold a token.

    Raises:
        ValueError: it is none.
    """
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_address = False
    if not is_address or re.search(r"[\s\x00-\x1f]", address):
        raise ValueError(
            "is not a web address; write https://HOST/…, or ${NAME} for a variable that holds one"
        )
