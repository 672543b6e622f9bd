"""`exeat --help` is made from a table; it says what the commands say of themselves."""

from __future__ import annotations

import subprocess
import sys

from exeat.appliance.cli import build_parser


def test_help_without_the_modules_is_the_help_of_the_modules() -> None:
    assert build_parser(names_only=True).format_help() == build_parser().format_help()


def test_help_needs_no_configuration_library() -> None:
    script = "import sys; from exeat.appliance.cli import main\ntry: main(['--help'])\nfinally: "
    script += "assert not {'pydantic', 'yaml', 'requests'} & sys.modules.keys(), 'loaded'"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, "usage: exeat" in done.stdout) == (0, True), done.stderr
