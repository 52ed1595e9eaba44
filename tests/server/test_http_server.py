"""What systemd is told."""

from __future__ import annotations

import socket

import pytest

from turret_server.http_server import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_where_it_listens(tmp_path, monkeypatch, abstract):
    name = f"turret-{tmp_path.name}"
    address, shown = (f"\0{name}", f"@{name}") if abstract else (str(tmp_path / "n"),) * 2
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", shown)
        notify("READY=1")
        assert manager.recv(64) == b"READY=1"


def test_without_systemd_nobody_is_told(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
