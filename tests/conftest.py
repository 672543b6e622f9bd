"""What the marks `root` and `network` need; without it a test is skipped, and in CI that is a failure.

And what hypothesis does not fail for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Generator

PACKAGE_OF = {  # the program a test may start, and the Debian package that has it
    "crun": "crun",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "gcc": "gcc libc6-dev",
}
# A runner in the background has ctrl-c ignored, and one under nohup hanging up: what tests start would
# inherit that. A handler of ours is not inherited (execve(2)).
signal.signal(signal.SIGINT, signal.default_int_handler)
for _ignored in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_ignored) is signal.SIG_IGN:
        signal.signal(_ignored, lambda *_: None)
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
# How fast the machine is says nothing of the code; and in CI no test may fail by chance: there the examples
# are the same at each run, and elsewhere they are new ones.
settings.register_profile(
    "exeat",
    settings.get_profile("ci" if IN_CI else "default"),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("exeat")


@cache
def missing_for_root() -> str:
    """Why tests with real namespaces cannot run here, or ""."""
    if os.geteuid() != 0:
        return "needs root"
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = sorted(
        {package for tool, package in PACKAGE_OF.items() if shutil.which(tool, path=search) is None}
    )
    if packages:
        return f"needs: apt-get install {' '.join(packages)}"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"needs network namespaces: {probe.stderr.strip()}"
    return ""


@cache
def missing_for_network() -> str:
    """Why the machine's own package index cannot be used, or "". pip itself is asked, because its
    configuration is the machine's and stands nowhere in this repository."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=0", "six"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                download, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return "needs a package index that pip can reach"
    return ""


NEEDS = {"root": missing_for_root, "network": missing_for_network}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, missing in NEEDS.items():
        if item.get_closest_marker(mark) and (reason := missing()):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI no test may quietly not run, whoever skipped it."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _fail_a_skip_in_ci(report, item.nodeid, call)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself while it is imported."""
    report = yield
    _fail_a_skip_in_ci(report, collector.nodeid, report.call)
    return report


def _fail_a_skip_in_ci(
    report: pytest.TestReport | pytest.CollectReport, nodeid: str, call: pytest.CallInfo[Any] | None
) -> None:
    if IN_CI and report.skipped:
        reason = call.excinfo.value if call and call.excinfo else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"{nodeid}: skipped in CI: {reason}"
