"""Which URLs are fetched at all, and which lie below an allowed one."""

from __future__ import annotations

from urllib.parse import urlsplit


def url_problem(url: str) -> str | None:
    """Why a URL is not fetched, whoever asks; None if it may be."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return str(error)
    if "::" in url or "\\" in url or "%" in url or any(ord(c) <= 32 for c in url):
        return "it chains file systems, or holds an escape, a backslash or a blank"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "it holds a user, a query or a fragment; credentials come from the environment"
    if ".." in parts.path.split("/"):
        return "it holds '..'"
    return None if parts.netloc or parts.path.strip("/") else "it names nothing"


def is_below(url: str, prefix: str) -> bool:
    """Does a URL lie at or below another?"""
    prefix = prefix if prefix.endswith("://") else prefix.rstrip("/") + "/"
    return f"{url}/".startswith(prefix)
