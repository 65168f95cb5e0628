"""Who is notified when a run or sweep ends: a program, a web address, or both."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from boxseg.config.method import Config
from boxseg.errors import ConfigError

VARIABLE = r"\$\{(\w+)\}"
"""`${NAME}`, for which the environment has the text."""
RULE = "is not a web address; write https://HOST/…, or ${NAME} for a variable that holds one"


class NotifyConfig(Config):
    """Who gets one line of result once a run or sweep has ended or failed; not kept with the run."""

    command: list[str] | None = Field(None, min_length=1)
    """Program with its arguments, which gets the line as its last one; no shell reads them."""
    url: str | None = None
    """Web address that gets the line as JSON, as Slack, Mattermost and Discord take it; `${NAME}` in it stands for a
    variable of the environment, where tokens belong."""

    @field_validator("url")
    @classmethod
    def _check_scheme(cls, url: str | None) -> str | None:
        # one that begins with a variable is looked at once that is filled in
        if url is not None and not url.startswith("${") and not _is_address(url):
            raise ValueError(RULE)
        return url

    def address(self) -> str | None:
        """The web address with the variables of the environment filled in; None if no address is set.

        Raises:
            ConfigError: the environment lacks one of them, or this makes no address; the text tells no values.
        """
        if self.url is None:
            return None
        for name in re.findall(VARIABLE, self.url):
            if not os.environ.get(name):
                raise ConfigError(
                    f"notify.url: the environment has no {name}; export it, or leave notify.url out"
                )
        address = re.sub(VARIABLE, lambda match: os.environ[match[1]], self.url).strip()
        if not _is_address(address):
            raise ConfigError(f"notify.url: {RULE}")
        return address


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    has_gap = re.search(r"[\s\x00-\x1f]", text) is not None
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not has_gap
