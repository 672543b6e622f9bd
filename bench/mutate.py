"""Mutants of precedence and aggregation, and whether the tests notice: `python -m bench.mutate`.

Each mutant is put in place in a fork of a process that has everything else imported, and is held
against the case files first, then against a fixed world of random policies with the answers of the
reference evaluator, then against the tests below. What lives is printed; those that cannot be told
from the original are listed, with the reason, in docs/policy-quality.md. Exit 1 while another lives,
or while a listed one is killed or does not exist.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.mutants import Mutant, mutants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bench.killers import Killers

ROOT = Path(__file__).parents[1]
# Precedence (`decide`, `meta`) and aggregation: which rules, leases and budgets count (`index`,
# `verdicts`, `usage`), and which policy and overlay a snapshot answers with, if not the kill switch.
FILES: dict[str, tuple[str, ...]] = {
    "decide": (),
    "index": (),
    "verdicts": (),
    "meta": (),
    "usage": (),
    "snapshot": (
        "_unbound",
        "Snapshot._overlay",
        "Snapshot.decide",
        "Snapshot.decide_lookup",
        "Snapshot.document_for",
        "Snapshot.meanwhile",
        "Snapshot.policy_for",
        "Snapshot.stops",
    ),
}
PAGE = ROOT / "docs" / "policy-quality.md"
# In the order in which they are tried. `time` and `memory` are what a mutant may take.
KILLERS = ("import", "cases", "neighbours", "reference", "tests", "time", "memory")
LIMIT_S = 8  # of processor time; what lives takes two, so a slow machine kills nothing
LIMIT_BYTES = 4 << 30
_LIVES, _BROKEN = 0, 100


class Fate(NamedTuple):
    """What became of one mutant: who killed it, "" if it lives."""

    mutant: Mutant
    killer: str

    @property
    def text(self) -> str:
        return f"{self.mutant.file}:{self.mutant.line}: {self.mutant.key.partition(' ')[2]}"


def listed() -> frozenset[str]:
    """The mutants that the page says nobody can tell from the original."""
    blocks = PAGE.read_text(encoding="utf-8").split("```text\n")[1:]
    return frozenset(line for block in blocks for line in block.partition("```")[0].splitlines())


def every_mutant(names: Iterable[str]) -> Iterator[Mutant]:
    for name in names:
        file = f"policy/{name}.py"
        yield from mutants(file, (ROOT / file).read_text(encoding="utf-8"), FILES[name])


def _try(mutant: Mutant, killers: Killers) -> int:
    """In the fork: the exit code that says who killed it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 1))
    name = "exeat." + mutant.file.removesuffix(".py").replace("/", ".")
    try:
        killer = killers.killer(name, compile(mutant.tree, mutant.file, "exec"))
    except MemoryError:
        killer = "memory"
    except BaseException:  # the tool itself failed: that must not count as a kill
        return _BROKEN
    return KILLERS.index(killer) + 1 if killer else _LIVES


def _fate(mutant: Mutant, status: int) -> Fate:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return Fate(mutant, "time")
    code = os.waitstatus_to_exitcode(status)
    if code == _LIVES:
        return Fate(mutant, "")
    if not 1 <= code <= len(KILLERS):
        raise RuntimeError(f"the run itself failed ({code}) at {mutant.key}")
    return Fate(mutant, KILLERS[code - 1])


def fates(work: Iterator[Mutant], killers: Killers, jobs: int) -> Iterator[Fate]:
    """The fate of each mutant, as they come, `jobs` at a time."""
    running: dict[int, Mutant] = {}

    def ended() -> Fate:
        pid, status = os.wait()
        return _fate(running.pop(pid), status)

    for mutant in work:
        if len(running) >= jobs:
            yield ended()
        pid = os.fork()
        if pid == 0:
            os._exit(_try(mutant, killers))
        running[pid] = mutant
    while running:
        yield ended()


def report(found: list[Fate], known: frozenset[str], whole: bool, say: Callable[[str], None] = print) -> int:
    """Print the count; 0 if every mutant that is not listed was killed, and no listed one. `whole`: no
    mutant was left out, so that a listed one that is not among them is gone."""
    killed = [fate for fate in found if fate.killer]
    lives = sum(not fate.killer and fate.mutant.key not in known for fate in found)
    wrong = [fate.mutant.key for fate in killed if fate.mutant.key in known]
    if whole:
        wrong += sorted(known - {fate.mutant.key for fate in found})
    for key in wrong:
        say(f"listed as equal, but killed or gone: {key}")
    by = Counter(fate.killer for fate in killed)
    say("killed by " + ", ".join(f"{name} {by[name]}" for name in KILLERS if by[name]))
    telling = len(killed) + lives
    say(f"raw: {len(killed)} of {len(found)} mutants killed ({100 * len(killed) / len(found):.1f} %)")
    say(f"net of the listed ones: {len(killed)} of {telling} ({100 * len(killed) / telling:.1f} %)")
    return 1 if lives or wrong else 0


def _sample(keys: list[str], count: int) -> list[str]:
    """`count` of them at equal distances, the same ones each time."""
    return [keys[len(keys) * n // count] for n in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mutate", description=__doc__)
    parser.add_argument("files", nargs="*", default=list(FILES), help=f"of {' '.join(FILES)}; default all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, default=0, help="only so many, none of the listed")
    parser.add_argument("--only", default="", help="take only mutants whose name holds this")
    args = parser.parse_args()
    if sys.flags.hash_randomization:  # the order of sets decides what some mutants do
        again = [sys.executable, "-m", "bench.mutate", *sys.argv[1:]]
        return subprocess.run(again, env=os.environ | {"PYTHONHASHSEED": "0"}, check=False).returncode
    from bench.killers import Killers

    began = time.monotonic()
    known = listed()
    every = [mutant.key for mutant in every_mutant(args.files) if args.only in mutant.key]
    taken = _sample([key for key in every if key not in known], args.sample) if args.sample else every
    work = (mutant for mutant in every_mutant(args.files) if mutant.key in frozenset(taken))
    found = []
    for fate in fates(work, Killers(), args.jobs):
        found.append(fate)
        if not fate.killer and fate.mutant.key not in known:
            print(f"lives: {fate.text}", flush=True)
    whole = taken is every and not args.only and args.files == list(FILES)
    code = report(found, known, whole)
    print(f"{time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
