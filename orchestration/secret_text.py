"""Passwords, keys and tokens in texts that runs keep: refused before a run starts, hidden wherever a text is told."""

from __future__ import annotations

import re
from urllib.parse import unquote

KNOWN = (
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20}"
    r"|\bxox[abp]-[\w-]{10,}|\bhf_[A-Za-z0-9]{34}\b|\bAIza[\w-]{35}\b|\bsk-[A-Za-z0-9_-]{40,}|\bdapi[0-9a-f]{32}\b"
)
"""Private keys, and tokens that well-known services mark as such."""
ENVIRONMENT = (
    "runs keep their settings in files, logs and MLflow, so leave it out, and give it by the environment: "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for a server; PGPASSWORD or "
    "~/.pgpass for PostgreSQL; RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH for a cluster"
)
"""The way out for a setting that holds a secret."""
HIDDEN = "***"

_DATABASE = r"(?:sqlite|postgres|mysql|mariadb|mssql|oracle)[\w+.-]*://"
_SURE = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|credentials?|signature|api[_-]?key|access[_-]?key|account[_-]?key"
    r"|private[_-]?key)[\w.-]*(?<!_id)(?<!file)(?<!path)"
)
_LIKELY = r"(?:[\w.-]*[_.-])?(?:pass|token|sig|auth|authorization|key|jwt|sas)"
"""Names of secrets: wherever they are given a value, and as options of an address."""

_PASSWORD = re.compile(rf"{_DATABASE}[^@:/?#\s]*:[^@\s]*@|://[^@:/?#\s]*:[^@/?#\s]*@", re.I)
_USER = re.compile(rf"(?<![\w+.-])(?!(?:{_DATABASE}|(?:ssh|sftp|git)[\w+]*://))[a-z][\w+.-]*://[^@/?#\s]+@", re.I)
_OPTION = re.compile(rf"(?:^|[?&;#,{{\s])[\"']?(?P<name>{_SURE}|{_LIKELY})[\"']?\s*=\s*(?P<value>[^&;#\s]+)", re.I)
_SURE_OPTION = re.compile(rf"(?P<name>\b{_SURE}[\"']?\s*=\s*)(?P<value>[^&;#\s]+)", re.I)
_ASSIGNED = re.compile(rf"(?im)^(?P<name>[-+ ]\s*[\"']?(?:{_SURE}|{_LIKELY})[\"']?\s*[:=]\s*)(?P<value>[^\s()\[\]]+)$")
_ADDRESS = re.compile(r"[a-z][\w+.-]*://[^\s'\"<>]+", re.I)
_KNOWN = re.compile(KNOWN)


def find_secret(text: str) -> str | None:
    """What a setting gives away, in words; None for one that may be kept.

    Looked for: a password in the user part of an address, a user part that is a token itself, secrets among the
    options of an address or of a connection string, also encoded ones, and keys that services mark as such.
    """
    once = unquote(text)
    for plain in dict.fromkeys((text, once, unquote(once))):  # options inside of an option are encoded twice
        if _PASSWORD.search(plain):
            return "has a password in its address"
        if _USER.search(plain):
            return "has a user or a token in its address"
        if option := _OPTION.search(plain):
            return f"has the option {option['name']}, which may be secret"
        if _KNOWN.search(plain):
            return "looks like a key or token"
    return None


def hide(text: str) -> str:
    """The text with `***` for what is secret: in addresses, behind names such as `password=`, and known keys."""
    text = _ADDRESS.sub(lambda found: _hide_in_address(found[0]), text)
    return _KNOWN.sub(HIDDEN, _SURE_OPTION.sub(rf"\g<name>{HIDDEN}", text))


def hide_in_patch(text: str) -> str:
    """`hide`, and the values of lines such as `+  token: abc` too."""
    return _ASSIGNED.sub(rf"\g<name>{HIDDEN}", hide(text))


def _hide_in_address(address: str) -> str:
    scheme = address.partition("://")[0]
    shown = _USER.sub(f"{scheme}://{HIDDEN}@", _PASSWORD.sub(_without_user, address))
    shown = _OPTION.sub(lambda found: found[0].replace(found["value"], HIDDEN), shown)
    return shown if find_secret(shown.replace(f"{HIDDEN}@", "").replace(HIDDEN, "")) is None else f"{scheme}://{HIDDEN}"


def _without_user(found: re.Match[str]) -> str:
    return f"{found[0].partition('://')[0]}://{HIDDEN}@"
