"""The corpus itself: it loads, its bytes are what they say, and its judge can say no."""

from __future__ import annotations

from typing import Any

import pytest
from tests.redteam import cases, hello
from tests.redteam.arena import ARENA
from tests.redteam.judge import World, judge

from exeat.proxy.client_hello import HelloParser

WORLD = World.of(ARENA)
CORPUS = {case.id: case for case in cases.load()}
NAMES = CORPUS["names/off-list/connect"]
TLS = CORPUS["tls/evil"]
UDP = CORPUS["udp/evil"]
CONTROL = CORPUS["controls/https"]
CLEAN: dict[str, Any] = {"stopped": "", "heard": []}
NOTHING: dict[str, list[Any]] = {"tcp": [], "dns": [], "packets": [], "udp": []}
HOME, EVIL = "192.0.32.10", "192.0.43.10"


def news(**found: list[Any]) -> dict[str, list[Any]]:
    return {**NOTHING, **found}


def connection(host: str, data: str = "", where: str = "world") -> dict[str, Any]:
    return {"n": 1, "host": host, "port": 443, "new": True, "data": data, "where": where}


def dial(host: str, port: int = 443, protocol: int = 6) -> dict[str, Any]:
    return {"host": host, "port": port, "protocol": protocol, "where": "world"}


def datagram(host: str, data: str) -> dict[str, Any]:
    return {"host": host, "port": 7000, "data": data, "where": "world"}


def asked(name: str) -> dict[str, Any]:
    return {"name": name, "type": 1, "over": "udp", "where": "world"}


def test_the_corpus_covers_every_class_with_many_cases() -> None:
    groups = {case.group for case in CORPUS.values()}
    assert groups == {
        *("names", "ports", "literals", "resolve", "http", "tls", "socks", "dns", "redirected", "controls"),
        "udp",
    }
    assert len(CORPUS) >= 200
    assert all(case.source and case.title and case.steps for case in CORPUS.values())
    assert sum(case.expect == "allowed" for case in CORPUS.values()) >= 30


@pytest.mark.parametrize(
    ("case", "seen", "word"),
    [
        (NAMES, news(packets=[dial(EVIL)]), EVIL),
        (NAMES, news(packets=[dial(HOME)]), "dialled"),
        (NAMES, news(tcp=[connection("127.0.0.1", where="loopback")]), "gateway itself"),
        (NAMES, news(dns=[asked("evil.example.net")]), "resolver"),
        (NAMES, news(dns=[asked("www.wild.example.org")]), "resolver"),
        (NAMES, news(packets=[dial("8.8.8.8", 53, 17)]), "protocol 17"),
        (UDP, news(packets=[dial(EVIL, 7000, 17)]), "protocol 17"),
        (UDP, news(packets=[dial(HOME, 4433, 17)]), "protocol 17"),
        (UDP, news(udp=[datagram(HOME, "x")]), "1 bytes"),
        (UDP, news(udp=[datagram(HOME, "")]), "0 bytes"),
        (UDP, news(udp=[{**datagram("127.0.0.1", "x"), "where": "loopback"}]), "gateway itself"),
        (TLS, news(packets=[dial(HOME)], tcp=[connection(HOME, "\x16")]), "1 bytes"),
        (TLS, news(packets=[dial(HOME, 22)]), "22"),
        (CONTROL, news(dns=[asked("blocked.wild.example.org")]), "resolver"),
    ],
)
def test_what_must_not_be_seen_fails_a_case(case: cases.Case, seen: dict[str, list[Any]], word: str) -> None:
    verdict = judge(WORLD, case, CLEAN, seen)
    assert not verdict.passed
    assert any(word in problem for problem in verdict.problems)


def test_a_quiet_refusal_and_a_working_control_pass() -> None:
    refused = {"stopped": "step 3 (need): got b'HTTP/1.1 403'", "heard": ["HTTP/1.1 403"]}
    assert judge(WORLD, NAMES, refused, NOTHING).passed
    assert judge(WORLD, TLS, CLEAN, news(packets=[dial(HOME)], dns=[asked("www.wild.example.org")])).passed
    served = news(packets=[dial(HOME)], tcp=[connection(HOME, "x")], dns=[asked("wWw.wild.example.org.")])
    assert judge(WORLD, CONTROL, CLEAN, served).passed
    assert not judge(WORLD, CONTROL, refused, NOTHING).passed


def test_unseen_and_unwanted_texts() -> None:
    case = CORPUS["http/keep-alive"]
    assert judge(WORLD, case, CLEAN, news(tcp=[connection(HOME, "GET / HTTP/1.1")])).passed
    assert not judge(WORLD, case, CLEAN, news(tcp=[connection(HOME, "GET /second")])).passed
    case = CORPUS["dns/private-answer"]
    assert not judge(WORLD, case, {"stopped": "", "heard": ["..\x0a\x00\x00\x05"]}, NOTHING).passed


def test_a_spelling_that_goes_upstream_fails() -> None:
    case = CORPUS["dns/letter-case"]
    assert not judge(WORLD, case, CLEAN, news(dns=[asked(case.spelling[0])])).passed
    assert judge(WORLD, case, CLEAN, news(dns=[asked(case.spelling[0].lower())])).passed


@pytest.mark.parametrize(
    "spec", [{}, {"grease": 2600}, {"pad": 15_500}, {"records": [1, 1, 3]}, {"records": [80]}], ids=str
)
def test_good_hellos_are_hellos(spec: dict[str, Any]) -> None:
    data = hello.build({"sni": "www.wild.example.org", **spec})
    found = HelloParser().feed(data)
    assert found is not None
    assert found.sni == "www.wild.example.org"
    assert len(data) >= spec.get("pad", 0) + spec.get("grease", 0)


def test_large_hellos_are_as_large_as_their_titles_say() -> None:
    sizes = {
        name: max(len(s["hex"]) // 2 for s in CORPUS[f"controls/{name}"].steps if s["op"] == "send")
        for name in ("hello-3k", "hello-16k")
    }
    assert 2_900 < sizes["hello-3k"] < 3_300
    assert 15_800 < sizes["hello-16k"] <= 16_384
