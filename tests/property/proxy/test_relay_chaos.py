"""Many tunnels in disorder on one loop: no byte passes unreserved, is lost, or is unknown to the books."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.support import relay_chaos

from exeat.proxy.relays import BUILT, COMPILED, PYTHON

REPO = Path(__file__).resolve().parents[3]
KINDS = (PYTHON, COMPILED) if BUILT else (PYTHON,)


@pytest.mark.parametrize("kind", KINDS)
def test_the_books_agree_whatever_happens(kind: str) -> None:
    found = relay_chaos.rounds(kind, 7, 60)
    assert found.keys() >= {"eof", "reset", "cut", "test.stop", "test.held"}


if BUILT:  # so there is a compiler

    def test_no_sanitizer_finds_anything(tmp_path: Path) -> None:
        module = tmp_path / "_relay.so"
        flags = ["-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        include = f"-I{sysconfig.get_path('include')}"
        source = str(REPO / "proxy/_relay.c")
        subprocess.run(["gcc", *flags, "-shared", "-fPIC", include, source, "-o", str(module)], check=True)
        libraries = [
            subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
            for name in ("libasan.so", "libubsan.so")
        ]
        done = subprocess.run(
            [sys.executable, str(REPO / "tests/support/relay_chaos.py"), str(module), "11", "30"],
            env={
                **os.environ,
                "LD_PRELOAD": " ".join(libraries),
                "PYTHONMALLOC": "malloc",
                "PYTHONPATH": f"{REPO}/src:{REPO}",
                "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "reset" in done.stdout
