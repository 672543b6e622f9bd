"""The AsyncAPI document that is shipped, and whether an event is as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import yaml

SPEC = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "appliance/console/spec/asyncapi.yaml").read_text()
)


def valid(topic: str, data: Any) -> None:
    """Raises jsonschema.ValidationError."""
    message = SPEC["components"]["messages"][topic]
    schema = {**message["payload"], "components": SPEC["components"]}
    jsonschema.Draft202012Validator(schema).validate(data)
