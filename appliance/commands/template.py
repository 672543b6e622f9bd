"""`exeat template ls|show`: the templates that jobs can be run by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from exeat.appliance import template

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    parser = commands.add_parser("template", help="profiles, limits and policies for jobs, by name")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    ls = verbs.add_parser("ls", help="the templates that come along")
    ls.set_defaults(handler=_ls)
    show = verbs.add_parser("show", help="a template as it is written")
    show.add_argument("name", metavar="NAME", help="of a template, or the path of one")
    show.set_defaults(handler=_show)
    for verb in (ls, show):
        verb.add_argument("--json", action="store_true", help="print JSON")


def _ls(args: argparse.Namespace) -> int:
    found = [template.load(name) for name in template.names()]
    if args.json:
        print(json.dumps([each.model_dump(mode="json") for each in found]))
        return 0
    for each in found:
        print(f"{each.name:18} {each.profile:13} {each.about}")
    return 0


def _show(args: argparse.Namespace) -> int:
    loaded = template.load(args.name)
    print(json.dumps(loaded.model_dump(mode="json")) if args.json else template.text_of(args.name).rstrip())
    return 0
