"""Passwords, keys and tokens in texts that runs keep: refused in settings, hidden in all that is written or printed."""

from __future__ import annotations

import re
from urllib.parse import unquote

KNOWN = (
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20}"
    r"|\bxox[abp]-[\w-]{10,}|\bhf_[A-Za-z0-9]{34}\b|\bAIza[\w-]{35}\b|\bsk-[A-Za-z0-9_-]{40,}|\bdapi[0-9a-f]{32}\b"
    r"|\bhooks\.slack\.com/\w+/[^\s'\"]+|\bdiscord(?:app)?\.com/api/webhooks/[^\s'\"]+"
    r"|\.webhook\.office\.com/[^\s'\"]+|\bapi\.telegram\.org/bot[^\s'\"]+"
)
"""Private keys, tokens that well-known services mark as such, and addresses by which anybody can write into a chat."""
ENVIRONMENT = (
    "runs keep their settings in files, logs and MLflow, so leave it out, and give it by the environment: a variable "
    "of your own for notify.url, as in ${MY_URL}; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, for a server; PGPASSWORD or ~/.pgpass for PostgreSQL; RAY_AUTH_TOKEN or "
    "RAY_AUTH_TOKEN_PATH for a cluster"
)
"""Advice for a setting that holds a secret."""
HIDDEN = "***"

_FROM_ENVIRONMENT = r"\$\{\w+\}(?:[&;#\s'\"]|$)"
"""`${NAME}` as a whole value: says where a secret is, and not what it is."""
# Texts, as compiling them takes a while: `re` does so when they are first used, and keeps them.
_DATABASE = r"(?:sqlite|postgres|mysql|mariadb|mssql|oracle)[\w+.-]*://"
_SURE = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|credentials?|signature|api[_-]?key|access[_-]?key|account[_-]?key"
    r"|private[_-]?key)[\w.-]*(?<!_id)(?<!file)(?<!path)"
)
"""Names that mean a secret wherever they are given a value, unless they end as that of an id or a file does."""
_LIKELY = r"(?:[\w.-]*[_.-])?(?:pass|token|sig|auth|authorization|key|jwt|sas)"
"""Names that mean one as an option of an address, or in a line of a patch."""

_PASSWORD = rf"(?i){_DATABASE}[^@:/?#\s]*:[^@\s]*@|://[^@:/?#\s]*:[^@/?#\s]*@"
"""`://user:password@`; of a database the password may hold `/`, `?` and `#` as they are."""
_USER = (
    rf"(?i)(?<![\w+.-])(?!(?:{_DATABASE}|(?:ssh|sftp|git)[\w+]*://))[a-z][\w+.-]*://[^@/?#\s]+@"
)
"""`://token@`; databases and ssh have the name of a user there, which is no secret."""
_OPTION = (
    rf"(?i)(?:^|[?&;#,{{\s])[\"']?(?P<name>{_SURE}|{_LIKELY})[\"']?\s*=\s*"
    rf"(?!{_FROM_ENVIRONMENT})(?P<value>[^&;#\s]+)"
)
"""`?token=abc` in an address or a connection string."""
_SURE_OPTION = (
    rf"(?i)(?P<name>(?<![\w.-]){_SURE}[\"']?\s*=\s*)(?!{_FROM_ENVIRONMENT})(?P<value>[^&;#\s]+)"
)
"""`password=abc` in any text."""
_NOTIFY = (
    r"(?P<name>(?:^|--set[ =][\"']?)notify(?:\.\w+)?=)"
    rf"(?!{_FROM_ENVIRONMENT})(?P<value>\{{[^}}]*\}}?|\[[^]]*\]?|[^\s'\"]+)"
)
"""`--set notify.url=…`: any address there may be a secret one."""
_ASSIGNED = rf"(?im)^(?P<name>[-+ ]\s*[\"']?(?:{_SURE}|{_LIKELY}|url)[\"']?\s*[:=]\s*)(?P<value>[^\s()\[\]]+)$"
"""A whole line of a patch, as in `+  token: abc`; calls and lists are code, which gives nothing away."""
_ADDRESS = r"(?i)(?<![\w+.-])[a-z][\w+.-]*://[^\s'\"<>]+"


def find_secret(text: str) -> str | None:
    """What a setting gives away, in words; None for one that may be kept.

    Looked for: a password in the user part of an address, a user part that is a token itself, secrets among the
    options of an address or of a connection string, also encoded ones, and keys that services mark as such.
    """
    once = unquote(text)
    # options inside of an option are encoded twice
    for plain in dict.fromkeys((text, once, unquote(once))):
        if re.search(_PASSWORD, plain):
            return "has a password in its address"
        if re.search(_USER, plain):
            return "has a user or a token in its address"
        if option := re.search(_OPTION, plain):
            return f"has the option {option['name']}, which may be secret"
        if re.search(KNOWN, plain):
            return "looks like a key or token"
    return None


def hide(text: str) -> str:
    """The text with `***` for what is secret: in addresses, behind names such as `password=`, and known keys."""
    text = re.sub(_NOTIFY, rf"\g<name>{HIDDEN}", text)
    text = re.sub(_ADDRESS, lambda match: _hide_in_address(match[0]), text)
    return re.sub(KNOWN, HIDDEN, re.sub(_SURE_OPTION, rf"\g<name>{HIDDEN}", text))


def hide_in_patch(text: str) -> str:
    """`hide`, and the values of lines such as `+  token: abc` too."""
    return re.sub(_ASSIGNED, rf"\g<name>{HIDDEN}", hide(text))


def _hide_in_address(address: str) -> str:
    scheme = address.partition("://")[0]
    shown = re.sub(_USER, f"{scheme}://{HIDDEN}@", re.sub(_PASSWORD, _without_user, address))
    shown = re.sub(_OPTION, lambda match: match[0].removesuffix(match["value"]) + HIDDEN, shown)
    # If something in it still looks like a secret, only the scheme is shown.
    if find_secret(shown.replace(f"{HIDDEN}@", "").replace(HIDDEN, "")) is not None:
        return f"{scheme}://{HIDDEN}"
    return shown


def _without_user(match: re.Match[str]) -> str:
    return f"{match[0].partition('://')[0]}://{HIDDEN}@"
