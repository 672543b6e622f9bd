"""What `exeat lab demo` shows: steps as they happen, a table of what was tried, one verdict."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

_TITLE = 62
_RULE = "-" * 100


class Report:
    """Live lines on standard output, or, for machines, one JSON document at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._live = not as_json and sys.stdout.isatty()
        self._begun = time.monotonic()
        self._steps: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._title = ("", "")

    @property
    def failures(self) -> int:
        return sum(not step["ok"] for step in self._steps)

    def begin(self, name: str, title: str) -> None:
        self._title = (name, title)
        if self._live:
            print(f"  ..   {title}", end="\r", flush=True)

    def table(self, rows: list[dict[str, Any]]) -> None:
        """What was tried; shown right after the step it belongs to."""
        self._rows = rows

    def end(self, seconds: float, result: dict[str, Any], problem: str) -> None:
        name, title = self._title
        step = {
            "step": name,
            "title": title,
            "ok": not problem,
            "ms": round(seconds * 1000),
            "result": result,
        }
        self._steps.append(step | ({"problem": problem} if problem else {}))
        if self._json:
            return
        self._line(f"{'FAIL' if problem else 'ok':<4} {title:<{_TITLE}} {seconds:6.2f} s")
        for line in _facts(result):
            self._line(f"       {line}")
        if problem:
            self._line(f"       {problem}")
        if name == "tour" and self._rows:
            for line in _table(self._rows):
                self._line(line)

    def _line(self, text: str) -> None:
        print(f"\x1b[K  {text}" if self._live else f"  {text}", flush=True)

    def finish(self, hint: str = "") -> int:
        """Print the verdict; the exit code."""
        seconds = time.monotonic() - self._begun
        if self._json:
            document = {
                "ok": not self.failures,
                "ms": round(seconds * 1000),
                "steps": self._steps,
                "attempts": self._rows,
            }
            print(json.dumps(document, indent=2))
        else:
            passed = len(self._steps) - self.failures
            self._line(_RULE)
            self._line(f"{passed} of {len(self._steps)} steps passed in {seconds:.1f} s")
            if hint:
                self._line(hint)
        return 1 if self.failures else 0


def _facts(result: dict[str, Any]) -> list[str]:
    """A result as short lines: plain values on one, each nested part on one of its own."""
    flat = [_fact(key, value) for key, value in result.items() if not isinstance(value, dict)]
    lines = [" · ".join(flat)] if flat else []
    for key, value in result.items():
        if isinstance(value, dict):
            inner = " · ".join(_fact(name, part) for name, part in value.items())
            lines.append(f"{key.replace('_', ' ')}: {inner}")
    return lines


def _fact(key: str, value: Any) -> str:
    name, unit = (key[:-3], " ms") if key.endswith("_ms") else (key, "")
    return f"{name.replace('_', ' ')} {_value(value)}{unit}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "none" if not value else ", ".join(map(str, value[:3]))
    return f"{value:,}" if type(value) is int else str(value)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    client = max(len(row["client"]) for row in rows)
    what = min(66, max(len(row["what"]) for row in rows))
    lines = ["", f"       {'verdict':<8} {'client':<{client}}  {'destination':<{what}}  why"]
    for row in rows:
        mark = (
            "" if row["ok"] else f"   <-- NOT SO: {', '.join(row['recorded']) or 'no record'}: {row['said']}"
        )
        seen = row["want"] if row["ok"] else ("reached" if row["reached"] else "refused")
        lines.append(
            f"       {seen:<8} {row['client']:<{client}}  {row['what'][:what]:<{what}}  {row['why']}{mark}"
        )
    return [*lines, ""]
