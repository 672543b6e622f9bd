"""Which disks hold a folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from exeat.appliance.disks import disks_of

if TYPE_CHECKING:
    from pathlib import Path


def device(folder: Path, number: str, name: str) -> Path:
    """As below /sys: a folder of devices, and a link by its number to each."""
    made = folder / "devices" / name
    made.mkdir(parents=True)
    (made / "dev").write_text(f"{number}\n")
    (folder / number).symlink_to(made)
    return made


def number_of(path: Path) -> str:
    found = path.stat().st_dev
    return f"{os.major(found)}:{os.minor(found)}"


def test_a_disk_and_the_disk_of_a_partition(tmp_path: Path) -> None:
    device(tmp_path / "whole", number_of(tmp_path), "sda")
    major, minor = map(int, number_of(tmp_path).split(":"))
    assert disks_of([tmp_path, tmp_path / "whole"], tmp_path / "whole") == ((major, minor),)
    device(tmp_path / "parted", "8:0", "sda")
    (device(tmp_path / "parted", number_of(tmp_path), "sda/sda1") / "partition").write_text("1\n")
    assert disks_of([tmp_path], tmp_path / "parted") == ((8, 0),)


def test_what_is_on_no_disk(tmp_path: Path) -> None:
    assert disks_of([tmp_path, tmp_path / "missing"], tmp_path / "none") == ()
    (device(tmp_path / "odd", number_of(tmp_path), "odd") / "dev").write_text("nonsense")
    assert disks_of([tmp_path], tmp_path / "odd") == ()
