"""The examples for containers say what the units and the configuration say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from exeat.appliance.config import Config

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def objects() -> dict[str, Any]:
    text = (REPO / "packaging/kubernetes.yaml").read_text()
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_a_pod_has_the_capabilities_of_the_warden_and_no_others(objects: dict[str, Any]) -> None:
    (container,) = objects["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    held = container["securityContext"]["capabilities"]
    unit = (REPO / "systemd/exeat-warden.service").read_text()
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert {f"CAP_{name}" for name in held["add"]} == set(" ".join(lines).split())
    assert held["drop"] == ["ALL"]


def test_the_configuration_in_it_is_valid(objects: dict[str, Any]) -> None:
    config = Config.model_validate(tomllib.loads(objects["ConfigMap"]["data"]["exeat.toml"]))
    (door,) = config.proxy.listen
    (rule,) = objects["NetworkPolicy"]["spec"]["egress"]
    assert door.endswith(f":{rule['ports'][0]['port']}")  # what pods may reach is where the gateway listens
    assert config.proxy.credentials is not None


def test_what_is_mounted_is_there(objects: dict[str, Any]) -> None:
    pod = objects["DaemonSet"]["spec"]["template"]["spec"]
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert {each["name"] for each in pod["volumes"]} == set(mounted)
    assert mounted["state"] == str(Config().state_dir)
    assert mounted["policies"] == str(Config().policy.dir)


def test_the_image_is_made_of_the_package() -> None:
    recipe = (REPO / "packaging/Containerfile").read_text()
    assert "COPY dist/exeat_*.deb" in recipe  # the name that tools/package.py gives it
    assert f'VOLUME ["{Config().state_dir}"]' in recipe
