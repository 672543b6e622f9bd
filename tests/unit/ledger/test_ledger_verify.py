"""The verifier names the record for whatever was done to a ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import DEST, deny, record

from exeat.ledger import headfile, segment
from exeat.ledger.merkle import Frontier
from exeat.ledger.reader import read
from exeat.ledger.records import Kind, Record, encode
from exeat.ledger.store import Store
from exeat.ledger.verify import Report, parse_head, verify
from exeat.ledger.verify_offline import parse_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SEGMENT = 2048


def build(base: Path, groups: Sequence[Sequence[bytes]], *, segment_bytes: int = SEGMENT) -> Path:
    store = Store.create(base, "exeat/n1", 1, segment_bytes=segment_bytes)
    for number, batch in enumerate(groups):
        store.append(list(batch), number)
    store.close()
    return base


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Three segments or more, one to three records a group."""
    return build(tmp_path / "l", [[deny(n * 3 + m) for m in range(1 + n % 3)] for n in range(20)])


def segments(ledger: Path) -> list[Path]:
    return sorted((ledger / "seg").iterdir())


def frames(path: Path) -> list[tuple[int, segment.Frame]]:
    at, out = 0, []
    for found in segment.scan(path.read_bytes()):
        out.append((at, found))
        at = found.end
    return out


def first(report: Report) -> tuple[int, str]:
    assert not report.ok
    assert len(report.problems) == 1
    return report.problems[0].record, report.problems[0].what


def test_an_untouched_ledger_verifies(ledger: Path) -> None:
    report = verify(ledger)
    assert report.ok
    assert not report.notes
    assert report.segments == len(segments(ledger)) >= 3
    assert report.kinds == {"deny": report.size}


def test_two_processes_say_what_one_says(ledger: Path) -> None:
    assert verify(ledger, two=True) == verify(ledger)
    (ledger / "head").unlink()
    assert verify(ledger, two=True) == verify(ledger)
    for path in segments(ledger):
        clean = path.read_bytes()
        for at in range(0, len(clean), 97):
            path.write_bytes(clean[:at] + bytes([clean[at] ^ 4]) + clean[at + 1 :])
            assert verify(ledger, two=True) == verify(ledger), at
        path.write_bytes(clean)


def test_two_processes_find_what_is_wrong_in_the_books(tmp_path: Path) -> None:
    wrong = [record(Kind.OPEN, 1, reserved=9), record(Kind.CLOSE, 1, bytes_out=10), record(Kind.CLOSE, 2)]
    ledger = build(tmp_path / "l", [wrong, [deny(n) for n in range(20)]])
    report = verify(ledger, two=True)
    assert report == verify(ledger)
    assert [problem.record for problem in report.problems] == [1, 2]


def test_a_flow_that_goes_from_one_half_into_the_other(tmp_path: Path) -> None:
    """Opened in the first, going on and settled in the second; also one that is closed after its orphan."""
    begun = [[record(Kind.OPEN, n, reserved=9)] for n in range(4)]
    filler = [[deny(n)] for n in range(40)]
    ended = [
        [record(Kind.PROGRESS, 0, bytes_out=3), record(Kind.CLOSE, 0, bytes_out=4)],
        [record(Kind.ORPHAN, 1, bytes_in=2)],
        [record(Kind.ORPHAN, 2), record(Kind.CLOSE, 2, bytes_in=5), record(Kind.OPEN, 9)],
    ]
    ledger = build(tmp_path / "l", [*begun, *filler, *ended])
    report = verify(ledger, two=True)
    assert report.ok
    assert report == verify(ledger)
    assert (report.flows_open, report.flows_closed, report.flows_orphaned) == (2, 2, 1)
    assert (report.bytes_out, report.bytes_in, report.kinds["open"]) == (4, 5, 5)


def test_the_first_start_says_which_key_signs_also_to_two(tmp_path: Path) -> None:
    starts = [[encode(Record(Kind.BOOT, data=bytes([n]) * 32))] for n in (1, 2)]
    ledger = build(tmp_path / "l", [starts[0], *([deny(n)] for n in range(40)), starts[1]])
    assert verify(ledger, two=True) == verify(ledger)
    assert verify(ledger, two=True).key == "01" * 32


@pytest.mark.parametrize(
    ("last", "what"),
    [
        ([record(Kind.CLOSE, 1, bytes_out=10)], "close: 10 bytes passed, 9 were reserved"),
        ([record(Kind.CLOSE, 7)], "close: the flow was never opened"),
        ([record(Kind.OPEN, 1)], "open: this flow was opened before"),
        ([record(Kind.CLOSE, 1), record(Kind.OPEN, 1)], "open: this flow was opened before"),
    ],
)
def test_what_only_both_halves_together_show(tmp_path: Path, last: list[bytes], what: str) -> None:
    begun = [record(Kind.OPEN, 1, reserved=9)]
    ledger = build(tmp_path / "l", [begun, *([deny(n)] for n in range(40)), last])
    report = verify(ledger, two=True)
    assert report == verify(ledger)
    assert [problem.what for problem in report.problems] == [what]


def test_quick_says_of_a_sound_ledger_what_the_tree_is(ledger: Path) -> None:
    whole = verify(ledger)
    for two in (False, True):
        report = verify(ledger, two=two, quick=True)
        assert (report.ok, report.quick, report.kinds) == (True, True, {})
        assert (report.size, report.root, report.segments) == (whole.size, whole.root, whole.segments)


def test_quick_misses_nothing_but_what_changes_no_record(ledger: Path) -> None:
    """Checksums of records, and commits that the seal repeats. All else is reported as in full."""
    missed = set()
    for path in segments(ledger)[-2:]:
        clean, unseen = path.read_bytes(), dict[int, bytes]()
        for start, found in frames(path):
            if found.kind in b"RC" and path != segments(ledger)[-1]:
                unseen |= dict.fromkeys(range(start + 4, start + 8), found.kind)
            if found.kind == b"C" and path != segments(ledger)[-1]:
                unseen |= dict.fromkeys(range(start + 17, found.end), found.kind)
        for at in range(0, frames(path)[-1][1].end, 7):
            path.write_bytes(clean[:at] + bytes([clean[at] ^ 4]) + clean[at + 1 :])
            report, whole = verify(ledger, quick=True), verify(ledger)
            if report.quick and not whole.ok:
                missed.add(unseen[at])
            else:
                assert (report.problems, report.notes) == (whole.problems, whole.notes)
        path.write_bytes(clean)
    assert missed == {b"R", b"C"}


def test_quick_against_a_head_that_was_noted(ledger: Path) -> None:
    report = verify(ledger, quick=True)
    for size in (1, 7, report.size):
        sound = verify(ledger, heads=((size, root_at(ledger, size)),), quick=True)
        assert sound.ok
        assert not verify(ledger, heads=((size, b"x" * 32),), quick=True).ok
    assert not verify(ledger, heads=((report.size + 1, b"x" * 32),), quick=True).ok


def root_at(ledger: Path, size: int) -> bytes:
    tree = Frontier()
    tree.extend(data for seq, data in read(ledger) if seq < size)
    return tree.root()


def test_any_flipped_byte_is_named(ledger: Path) -> None:
    """Every byte of every frame of a sealed and of the open segment."""
    for path in (segments(ledger)[0], segments(ledger)[-1]):
        clean = path.read_bytes()
        for start, found in frames(path):
            for at in range(start, found.end):
                path.write_bytes(clean[:at] + bytes([clean[at] ^ 1 << at % 8]) + clean[at + 1 :])
                number, _what = first(verify(ledger))
                assert number == found.seq, (at, found.kind)
        path.write_bytes(clean)
    assert verify(ledger).ok


def test_bytes_behind_the_seal_are_named(ledger: Path) -> None:
    path = segments(ledger)[0]
    seal = frames(path)[-1][1]
    data = bytearray(path.read_bytes())
    data[seal.end + 3] = 7
    path.write_bytes(data)
    assert first(verify(ledger)) == (seal.seq, "there is something behind the seal")


@pytest.mark.parametrize("number", [0, 1, 4, 5])
def test_a_dropped_record_is_named(ledger: Path, number: int) -> None:
    path = segments(ledger)[0]
    data = path.read_bytes()
    start, found = next(it for it in frames(path) if it[1].kind == b"R" and it[1].seq == number)
    path.write_bytes(data[:start] + data[found.end :])
    record_number, what = first(verify(ledger))
    assert record_number == number
    assert "missing or out of order" in what


def test_swapped_records_are_named(ledger: Path) -> None:
    path = segments(ledger)[0]
    data = path.read_bytes()
    (a, one), (b, two) = (it for it in frames(path) if it[1].kind == b"R" and it[1].seq in (4, 5))
    path.write_bytes(data[:a] + data[b : two.end] + data[one.end : b] + data[a : one.end] + data[two.end :])
    assert first(verify(ledger))[0] == 4


def test_a_record_dropped_with_all_numbers_made_new_is_found_by_the_root(ledger: Path) -> None:
    path = segments(ledger)[0]
    rebuilt, size = b"", 0
    for _, found in frames(path):
        if found.kind == b"R" and found.seq == 4:
            continue
        payload = found.payload
        if found.kind in b"CS":
            payload = size.to_bytes(8, "big") + payload[8:]
        rebuilt += segment.frame(size, found.kind, payload)
        size += found.kind == b"R"
    path.write_bytes(rebuilt.ljust(path.stat().st_size, b"\0"))
    number, what = first(verify(ledger))
    assert number in (3, 4)
    assert "Merkle root" in what


def rewrite(ledger: Path, records: list[bytes]) -> None:
    """What someone can do who may write everything but the head noted elsewhere."""
    tree = Frontier()
    tree.extend(records)
    head = segment.head_frame(segment.Head("exeat/n1", 1, Frontier(), b""))
    group = segment.group(0, records, segment.Commit(tree.size, tree.root(), 1))
    for path in segments(ledger)[1:]:
        path.unlink()
    segments(ledger)[0].write_bytes(head + group + bytes(64))
    (ledger / "head").write_bytes(headfile.pack(tree.size, tree.root(), 1))


def test_a_ledger_made_anew_is_found_by_a_head_noted_earlier(ledger: Path) -> None:
    honest = verify(ledger)
    noted = parse_head(f"{honest.size}:{honest.root}")
    rewrite(ledger, [deny(n) for n in range(honest.size)])
    assert verify(ledger).ok
    assert first(verify(ledger, heads=(noted,)))[0] == honest.size - 1
    rewrite(ledger, [deny(n) for n in range(5)])
    assert verify(ledger).ok
    assert first(verify(ledger, heads=(noted,))) == (
        5,
        f"records 5 to {honest.size - 1} are gone: the tail was cut",
    )


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_cut_tail_is_named(tmp_path: Path, groups: int) -> None:
    ledger = build(tmp_path / "l", [[deny(n), deny(n)] for n in range(5)], segment_bytes=65536)
    path = segments(ledger)[-1]
    data = path.read_bytes()
    commits = [found.end for _, found in frames(path) if found.kind == b"C"]
    path.write_bytes(data[: commits[-1 - groups]].ljust(len(data), b"\0"))
    left = 10 - 2 * groups
    assert first(verify(ledger)) == (left, f"records {left} to 9 are gone: the tail was cut")
    path.write_bytes(data[: commits[-1 - groups]])  # and the file shorter too
    assert first(verify(ledger))[0] == left


def test_a_removed_last_segment_is_a_cut_tail(ledger: Path) -> None:
    *_, before, last = segments(ledger)
    size = frames(before)[-1][1].seq
    last.unlink()
    assert first(verify(ledger))[0] == size


def test_a_removed_middle_segment_is_named(ledger: Path) -> None:
    size = frames(segments(ledger)[0])[-1][1].seq
    segments(ledger)[1].unlink()
    assert first(verify(ledger)) == (size, "segment 000000000001 is missing")


def test_a_segment_of_another_ledger_is_named(ledger: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "o", [[deny(900 + n)] for n in range(30)])
    segments(ledger)[1].write_bytes(segments(other)[1].read_bytes())
    assert not verify(ledger).ok


def test_a_missing_head_file_is_said(ledger: Path) -> None:
    (ledger / "head").unlink()
    report = verify(ledger)
    assert report.ok
    assert report.notes == ["there is no head file: a cut tail would not show"]


def test_no_ledger_is_an_error_not_a_verdict(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("flow", "number", "what"),
    [
        ([record(Kind.CLOSE, 1)], 0, "close: the flow was never opened"),
        ([record(Kind.RESERVE, 1, reserved=9)], 0, "reserve: the flow was never opened"),
        ([record(Kind.OPEN, 1), record(Kind.OPEN, 1)], 1, "open: this flow was opened before"),
        (
            [record(Kind.OPEN, 1), record(Kind.CLOSE, 1), record(Kind.CLOSE, 1)],
            2,
            "close: the flow is settled already",
        ),
        (
            [record(Kind.OPEN, 1, reserved=10), record(Kind.CLOSE, 1, bytes_out=6, bytes_in=5)],
            1,
            "close: 11 bytes passed, 10 were reserved",
        ),
        (
            [
                record(Kind.OPEN, 1, reserved=10),
                record(Kind.PROGRESS, 1, bytes_out=6),
                record(Kind.CLOSE, 1, bytes_out=5),
            ],
            2,
            "close: 5 bytes, fewer than the 6 reported before",
        ),
        (
            [record(Kind.OPEN, 1), record(Kind.CLOSE, 1), record(Kind.RESUME, 1)],
            2,
            "resume: the flow is settled already",
        ),
        ([deny(), b"\x82\x02\x0b"], 1, "not a record of schema 1: schema or kind"),
        ([deny(), b"\x83\x01\x0b\x00"], 1, "not a record of schema 1: number of fields"),
        ([deny(), b"\x83\x01\x0b\x18\x05"], 1, "not a record of schema 1: not the shortest form"),
        ([deny(), b"\x83\x01\x0b\x61a"], 1, "not a record of schema 1: type of field 0"),
    ],
)
def test_accounts_that_do_not_add_up_are_named(
    tmp_path: Path, flow: list[bytes], number: int, what: str
) -> None:
    assert first(verify(build(tmp_path / "l", [flow]))) == (number, what)


def test_accounts_that_add_up(tmp_path: Path) -> None:
    flows = [
        record(Kind.OPEN, 1, reserved=10, dest=DEST),
        record(Kind.RESERVE, 1, bytes_in=10, reserved=30),
        record(Kind.PROGRESS, 1, bytes_out=10, bytes_in=10),
        record(Kind.OPEN, 2, reserved=5),
        record(Kind.CLOSE, 1, bytes_out=10, bytes_in=20),
        record(Kind.OPEN, 3),
        record(Kind.ORPHAN, 2, reserved=5),
        record(Kind.OPEN, 4, reserved=5),
        record(Kind.ORPHAN, 4, reserved=5),
        record(Kind.CLOSE, 4, bytes_out=3),
    ]
    report = verify(build(tmp_path / "l", [flows]))
    assert report.ok
    assert (report.flows_closed, report.flows_orphaned, report.flows_open) == (2, 1, 1)
    assert (report.bytes_out, report.bytes_in) == (13, 20)


def test_both_parsers_read_a_record_alike() -> None:
    data = record(Kind.OPEN, 7, reserved=9, job="j", dest=DEST, detail="\u00fc")
    kind, parts = parse_record(data)
    assert (kind, parts[5], parts[6], parts[9], parts[38]) == ("open", 9, "j", list(DEST), "\u00fc")


@pytest.mark.parametrize(
    "text", ["", "5", "5:", "5:zz", "-1:" + "0" * 64, "+5:" + "0" * 64, "5:" + "0" * 63, "x:" + "0" * 64]
)
def test_a_head_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"head|hex"):
        parse_head(text)
