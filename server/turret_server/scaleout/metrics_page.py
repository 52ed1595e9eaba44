"""The metrics of all replicas on one page, each sample with the replica it comes from."""

from __future__ import annotations

from collections.abc import Mapping


def merged(pages: Mapping[str, bytes]) -> bytes:
    """One page in Prometheus' text format.

    Args:
        pages: by replica id.
    """
    comments: dict[str, list[bytes]] = {}  # of each metric, in the order of the first page
    samples: dict[str, list[bytes]] = {}
    for replica, page in pages.items():
        label = f'replica="{replica}"'.encode()
        metric = ""
        for line in page.splitlines():
            if line.startswith(b"# HELP "):
                metric = line.split(b" ", 3)[2].decode()
                samples.setdefault(metric, [])
                comments.setdefault(metric, []).clear()
            if line.startswith(b"#"):
                comments.setdefault(metric, []).append(line)
            elif line:
                samples.setdefault(metric, []).append(_labelled(line, label))
    return b"".join(
        line + b"\n" for metric in samples for line in (*comments.get(metric, ()), *samples[metric])
    )


def _labelled(sample: bytes, label: bytes) -> bytes:
    name, brace, rest = sample.partition(b"{")
    if brace and b" " not in name:
        return name + b"{" + label + b"," + rest
    name, _, value = sample.partition(b" ")
    return name + b"{" + label + b"} " + value
