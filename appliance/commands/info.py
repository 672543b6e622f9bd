"""`exeat version`, `exeat env`, `exeat completion SHELL`: what needs no running appliance."""

from __future__ import annotations

import argparse
import json
import shlex
from importlib.metadata import version
from typing import Any

from exeat.appliance.program import program_digest
from exeat.sandbox.env import job_environment


def register(commands: Any) -> None:
    version_of = commands.add_parser("version", help="print the version")
    version_of.add_argument("--digest", action="store_true", help="of the program, as the ledger has it")
    version_of.set_defaults(handler=_version)
    env = commands.add_parser("env", help="the environment a job gets, to eval in a shell")
    env.add_argument("--json", action="store_true", help="print JSON")
    env.set_defaults(handler=_env)
    completion = commands.add_parser("completion", help="print a completion script")
    completion.add_argument("shell", choices=("bash",))
    completion.set_defaults(handler=_completion)


def _version(args: argparse.Namespace) -> int:
    print(program_digest() if args.digest else f"exeat {version('exeat')}")
    return 0


def _env(args: argparse.Namespace) -> int:
    block = job_environment(job="")
    if args.json:
        print(json.dumps(block))
        return 0
    for name, value in block.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _completion(_args: argparse.Namespace) -> int:
    from exeat.appliance.cli import build_parser

    print(_BASH.replace("@WORDS@", _case_arms(build_parser())))
    return 0


_BASH = """\
# bash completion for exeat: eval "$(exeat completion bash)"
_exeat() {
  local cur=${COMP_WORDS[COMP_CWORD]} path="" word
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [[ $word == -- ]] && return
    [[ $word != -* && $word != */* ]] && path+=" $word"
  done
  case "${path# }" in
@WORDS@
  esac
}
complete -o default -F _exeat exeat"""


def _case_arms(parser: argparse.ArgumentParser) -> str:
    arms = [_arm(path, words) for path, words in _walk(parser, "")]
    # Longest path first: `lease approve ID` must still offer the options of `lease approve`.
    return "\n".join(sorted(arms, key=lambda arm: (-arm.count(" ", 0, arm.index(")")), arm)))


def _arm(path: str, words: list[str]) -> str:
    pattern = f'"{path}"*' if path else "*"
    return f'    {pattern}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$cur"));;'


def _walk(parser: argparse.ArgumentParser, path: str) -> list[tuple[str, list[str]]]:
    words: list[str] = []
    inner: list[tuple[str, list[str]]] = []
    for action in parser._actions:
        words += [option for option in action.option_strings if option.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                words.append(name)
                inner += _walk(child, f"{path} {name}".strip())
    return [(path, words), *inner]
