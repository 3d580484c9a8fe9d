"""Who may connect: tokens with names, compared in constant time; and where a server may listen without."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["LEAST_LENGTH", "TOKEN_VARIABLE", "check_binding", "client_of", "is_loopback", "read_tokens"]

TOKEN_VARIABLE = "DPS_TOKEN"
LEAST_LENGTH = 16
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header can carry as one word
_HOW = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


def read_tokens(
    given: str | Mapping[str, str] | None = None, file: str | Path | None = None, *, environment: bool = True
) -> dict[str, str]:
    """Name -> token, of everything that is given together.

    Args:
        given: one token, named "default", or several by name.
        file: lines of `name: token`, or a token alone; empty ones and those after # do not count.
        environment: whether DPS_TOKEN counts, too: one token, named "environment".

    Raises:
        ValueError: a token that is too short or has spaces, one name or one token twice, or a file without any.
        OSError: the file cannot be read.
    """
    found: list[tuple[str, str]] = []
    if given:
        found += [("default", given)] if isinstance(given, str) else list(given.items())
    if environment and os.environ.get(TOKEN_VARIABLE):
        found.append(("environment", os.environ[TOKEN_VARIABLE]))
    if file is not None:
        listed = [_line(number, line) for number, line in enumerate(Path(file).read_text().splitlines(), 1)]
        lines = [one for one in listed if one is not None]
        if not lines:
            raise ValueError(f"{file} has no tokens: its lines are `name: token`; {_HOW}")
        found += lines
    tokens: dict[str, str] = {}
    for name, token in found:
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"a token's name must be 1 to 64 of A-Z a-z 0-9 _ . -, got {str(name)[:64]!r}")
        if len(str(token)) < LEAST_LENGTH or not _TOKEN.fullmatch(str(token)):
            raise ValueError(f"token '{name}' must have at least {LEAST_LENGTH} characters, and no spaces; {_HOW}")
        if name in tokens or token in tokens.values():
            raise ValueError(f"token '{name}' is given twice")
        tokens[str(name)] = str(token)
    return tokens


def _line(number: int, line: str) -> tuple[str, str] | None:
    text = line.partition("#")[0].strip()
    if not text:
        return None
    name, colon, token = text.partition(":")
    return (name.strip(), token.strip()) if colon else (f"line{number}", text)


def client_of(header: str | None, tokens: Mapping[str, str]) -> str | None:
    """The name of the token in an Authorization header, `Api-Key TOKEN` or `Bearer TOKEN`; None: it has none of ours.

    All tokens are compared, each in a time that does not tell how much of it was right.
    """
    scheme, _, given = (header or "").partition(" ")
    if scheme.lower() not in ("api-key", "bearer"):
        return None
    found = None
    for name, token in tokens.items():
        if hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode()):
            found = name
    return found


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, of whatever address; or "", which is all of them
        return False


def check_binding(host: str, tokens: Mapping[str, str], insecure: bool) -> None:
    """Refuse to serve the network without asking who it is.

    Raises:
        ValueError: another address than loopback's, no tokens, and not `insecure`.
    """
    if not is_loopback(host) and not tokens and not insecure:
        raise ValueError(
            f"host={host} is open to others on the network: give token_file=FILE or {TOKEN_VARIABLE}, "
            f"or insecure=true where the network is all yours; {_HOW}"
        )
