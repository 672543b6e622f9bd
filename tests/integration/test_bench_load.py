"""bench/load.c does what it says: each mode, straight and through a proxy that is not ours."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bench import loader
from bench.loader import ECHO, POUR, SINK, LoadError, Tunnels
from tests.support.proxy_world import HOME, Origin, in_namespace

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

pytestmark = pytest.mark.root

PORT = 7000
OPEN_PROXY = Path(__file__).parents[1] / "redteam" / "open_proxy.py"


def with_load(body: Callable[[loader.Loader], None]) -> None:
    def run() -> None:
        with loader.compiled() as made, made.origin(HOME, PORT):
            body(made)

    in_namespace(run)


def ways(service: int) -> list[Tunnels]:
    place = f"{HOME}:{PORT + service}"
    return [
        Tunnels("direct", place, place),
        *(Tunnels(form, "127.0.0.1:8100", place) for form in ("connect", "socks5")),
    ]


def test_every_mode_through_every_form() -> None:
    def body(made: loader.Loader) -> None:
        with subprocess.Popen([sys.executable, str(OPEN_PROXY), "8100"]) as proxy:
            wait_for_port(8100)
            for mode, service in (
                ("conn", ECHO),
                ("ping", ECHO),
                ("down", POUR),
                ("up", SINK),
                ("rate", ECHO),
            ):
                for way in ways(service):
                    with made.running(mode, way, 4, 0.25, warm=0.05) as running:
                        running.wait_begin()
                        found = running.result()
                    assert found["failed"] == 0, (mode, way, found)
                    assert found["GBps" if mode in ("down", "up") else "done"] > 0, (mode, way)
                    if mode == "rate":
                        assert found["done"] == 1  # 4 a second for a quarter of a second
            proxy.kill()

    with_load(body)


def wait_for_port(port: int) -> None:
    for _ in range(500):
        probe = subprocess.run(["ss", "-Hltn", f"sport = {port}"], capture_output=True, check=True)
        if probe.stdout:
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens on {port}")


def test_idle_tunnels_stay_up_until_its_input_ends() -> None:
    def body(made: loader.Loader) -> None:
        with made.running("idle", ways(ECHO)[0], 300, 0, warm=0.05) as running:
            running.wait_begin()
            sockets = subprocess.run(
                ["ss", "-Htn", "state", "established", f"dport = {PORT}"], capture_output=True, check=True
            )
            assert len(sockets.stdout.splitlines()) == 300
            assert running.result()["up"] == 300

    with_load(body)


def test_a_refusal_and_a_dead_end_are_failures() -> None:
    def refuse(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        while sock.recv(4096):  # else its end would be a reset, which takes the answer with it
            pass

    def body(made: loader.Loader) -> None:
        proxy = Origin(0, refuse)
        refused = Tunnels("connect", f"{HOME}:{proxy.port}", f"{HOME}:{PORT}")
        nobody = Tunnels("direct", f"{HOME}:9", f"{HOME}:9")
        for way in (refused, nobody):
            with made.running("rate", way, 4, 0.25) as running:
                running.wait_begin()
                found = running.result()
            assert (found["done"], found["failed"]) == (0, 1)
            assert found["first_failure"]
            with made.running("ping", way, 1, 0.1) as running, pytest.raises(LoadError, match="refused"):
                running.wait_begin()
        Origin.close_all()

    with_load(body)


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match="apt-get install gcc"), loader.compiled():
        pass
