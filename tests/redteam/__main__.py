"""`python -m tests.redteam`: run the corpus against a proxy and say how it did.

    python -m tests.redteam --proxy http://127.0.0.1:8888 --start "tinyproxy -d -c FILE"
    python -m tests.redteam --proxy http://127.0.0.1:3128 --socks 127.0.0.1:1080 --dns 127.0.0.1:53
    python -m tests.redteam --exeat

The proxy runs in a namespace of the arena (arena.py), started by `--start` or, without it, by
you in another terminal: the command to enter the namespace is printed. Exit code: 0 when every
case came out as expected, 1 when one did not, 2 when the corpus could not be run.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.redteam import cases, report
from tests.redteam.arena import Arena, ArenaError, running
from tests.redteam.score import Endpoints, Score, await_port, score


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.redteam", description=__doc__.split("\n\n")[0])
    parser.add_argument("--proxy", metavar="http://HOST:PORT", help="where the proxy takes HTTP")
    parser.add_argument("--socks", metavar="HOST:PORT", help="where it takes SOCKS5, if it does")
    parser.add_argument("--udp", metavar="HOST:PORT", help="where it takes UDP ASSOCIATE, if it does")
    parser.add_argument("--dns", metavar="HOST:PORT", help="where its name server answers, if it has one")
    parser.add_argument("--start", metavar="COMMAND", help="starts the proxy, in the foreground")
    parser.add_argument("--exeat", choices=("jail", "alone"), help="start exeat itself, in this form")
    parser.add_argument("--arena", default="run", metavar="NAME", help="keeps parallel runs apart")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases whose id matches")
    parser.add_argument("--json", action="store_true", help="every verdict, as one document")
    parser.add_argument("--list", action="store_true", help="only print the cases")
    args = parser.parse_args(argv)
    if not (args.list or args.exeat or args.proxy or args.socks):
        parser.error("say where the proxy is: --proxy, --socks or --exeat")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    try:
        corpus = [case for case in cases.load() if fnmatch.fnmatch(case.id, args.only)]
        if args.list:
            report.listing(corpus)
            return 0
        with Arena(args.arena) as arena:
            result = _exeat(arena, args.exeat, corpus) if args.exeat else _other(arena, args, corpus)
    except (ArenaError, cases.CorpusError, OSError) as error:
        print(f"redteam: {error}", file=sys.stderr)
        return 2
    report.show(result, as_json=args.json)
    return 0 if result.passed else 1


def _exeat(arena: Arena, form: str, corpus: list[cases.Case]) -> Score:
    from tests.redteam.exeat import Exeat

    with Exeat(arena, alone=form == "alone") as appliance:
        return appliance.score(form, corpus)


def _other(arena: Arena, args: argparse.Namespace, corpus: list[cases.Case]) -> Score:
    proxy = urlsplit(args.proxy).netloc if args.proxy else ""
    endpoints = Endpoints.of(proxy=proxy, socks=args.socks or "", udp=args.udp or "", dns=args.dns or "")
    log = arena.folder / "proxy.log"
    with contextlib.ExitStack() as stack:
        if args.start:
            stack.enter_context(running(arena, shlex.split(args.start), log))
        else:
            print(f"start the proxy in its namespace: {shlex.join(arena.enter)} COMMAND", file=sys.stderr)
        await_port(arena, endpoints, 15 if args.start else 600)
        return score(arena, corpus, endpoints, arena.enter, Path(__file__).with_name("client.py"))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
