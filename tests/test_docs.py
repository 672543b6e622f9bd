"""The documents tell the truth: commands parse, links lead somewhere, nothing local is written down."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import pytest

from exeat.appliance.cli import build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])
FENCE = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL_LINE = re.compile(r"^(?:[$#] )?(?:sudo )?(?:[A-Z_]+=\S+ )*(exeat [a-z-].*)$")
INLINE = re.compile(r"`(?:sudo )?(exeat [^`]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Shown(NamedTuple):
    """A command as a page shows it. `whole` ones stand on a line of their own, ready to be typed."""

    page: str
    text: str
    whole: bool


def shown_commands() -> Iterator[Shown]:
    for page in PAGES:
        text = page.read_text()
        name = page.relative_to(REPO).as_posix()
        for block in FENCE.findall(text):
            for line in block.splitlines():
                if match := SHELL_LINE.match(line.strip()):
                    yield Shown(name, match.group(1), whole=True)
        for inline in INLINE.findall(FENCE.sub("", text)):
            yield Shown(name, " ".join(inline.split()), whole=False)


def variants(text: str) -> Iterator[list[str]]:
    """The argument lists a shown command stands for: `[...]` left out, `a|b` one after the other.

    Three spaces end the command: what follows is a column of explanations.
    """
    text = re.split(r"\s(?:#|\||&&|>|2>|;)\s|\s#|\s\|\s|\s{3}", text + " ")[0]
    text = re.sub(r"\[[^\]]*\](\.\.\.)?", "", text).replace("...", "")
    words = shlex.split(text)[1:]
    choice = next((n for n, word in enumerate(words) if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word)), None)
    if choice is None:
        yield words
        return
    for each in words[choice].split("|"):
        yield [*words[:choice], each, *words[choice + 1 :]]


def problem(parser: argparse.ArgumentParser, words: list[str], *, whole: bool) -> str:
    """Why the real parser would not take `words`, or "". Of a partial command only names are judged."""
    if whole:
        return parse_problem(parser, words)
    options = set(parser._option_string_actions)
    for word in words[: words.index("--")] if "--" in words else words:
        if word.startswith("-"):
            if word.partition("=")[0] not in options:
                return f"no option {word}"
            continue
        commands = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if commands is None:
            break
        if word not in commands.choices:
            return f"no command {word}"
        parser = commands.choices[word]
        options |= set(parser._option_string_actions)
    return ""


def parse_problem(parser: argparse.ArgumentParser, words: list[str]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        try:
            parser.parse_args(words)
        except SystemExit as stop:
            return output.getvalue().strip().splitlines()[-1] if stop.code else ""
    return ""


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return build_parser()


def test_every_command_shown_is_a_command(parser: argparse.ArgumentParser) -> None:
    wrong = [
        f"{shown.page}: `{shown.text}`: {found}"
        for shown in shown_commands()
        for words in variants(shown.text)
        if (found := problem(parser, words, whole=shown.whole))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("exeat doctr", True),
        ("exeat lab up|down|fly", True),
        ("exeat doctor --loud", True),
        ("exeat doctor --loud", False),
        ("exeat doctr", False),
        ("exeat ledger verify|burn", False),
    ],
)
def test_a_wrong_command_is_seen(parser: argparse.ArgumentParser, text: str, whole: bool) -> None:
    assert any(problem(parser, words, whole=whole) for words in variants(text))


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("exeat doctor --json", True),
        ("exeat doctor [--json]   # what is missing", True),
        ("exeat ledger tail | head", True),
        ("exeat lab down    take it all down again", True),
        ("exeat lab up|down|demo", True),
        ("exeat run --project crawler -- curl https://example.com", True),
        ("exeat lease", False),
        ("exeat run -- CMD", False),
    ],
)
def test_a_right_command_passes(parser: argparse.ArgumentParser, text: str, whole: bool) -> None:
    assert [problem(parser, words, whole=whole) for words in variants(text)] == [""] * len(
        list(variants(text))
    )


def anchors(page: Path) -> set[str]:
    """The fragment of each heading, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page: Path, target: str) -> bool:
    if urlsplit(target).scheme:
        return False
    file, _, fragment = target.partition("#")
    path = (page.parent / file).resolve() if file else page
    if not path.exists() or not path.is_relative_to(REPO):
        return True
    return bool(fragment) and path.suffix == ".md" and fragment not in anchors(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(FENCE.sub("", page.read_text()))
    assert [target for target in links if broken(page, target)] == []


CODE_PATH = re.compile(
    r"`((?:policy|ledger|dns|proxy|sandbox|appliance|tests|systemd|docs|examples)/[\w./-]+\.\w+)`"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_the_files_that_are_named_exist(page: Path) -> None:
    assert [name for name in CODE_PATH.findall(page.read_text()) if not (REPO / name).exists()] == []


def texts() -> Iterator[tuple[str, str]]:
    """Every text file of the checkout that git knows (all files where there is no git)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else [str(p) for p in REPO.rglob("*")]
    for name in names:
        path = REPO / name
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(UnicodeDecodeError):
                yield name, path.read_text(encoding="utf-8")


def machine_words() -> set[str]:
    """What belongs to this machine alone: the hosts of its package indexes, the checkout's folder."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    settings = configparser.RawConfigParser(delimiters=("=",))
    settings.read_string("[pip]\n" + listed)
    urls = [word.strip("'\"") for _, value in settings.items("pip") for word in value.split()]
    urls += [value for name, value in os.environ.items() if name.startswith("PIP_") and "://" in value]
    hosts = {urlsplit(url).hostname or "" for url in urls if "://" in url}
    folder = {str(REPO)} if len(REPO.parts) > 2 else set()
    # Public registries, in two halves so that this list does not find itself.
    public = {"pypi" + ".org", "python" + "hosted.org", "registry." + "npmjs", "crates" + ".io"}
    return (hosts - {"", "localhost"}) | folder | public


def test_nothing_of_this_machine_is_written_down() -> None:
    words = machine_words()
    assert [f"{name}: {word}" for name, text in texts() for word in words if word in text] == []
