"""The schemas in docs/schema, by which scripts read what ``--json`` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in (Path(__file__).parents[2] / "docs" / "schema").glob("*.json")
}


def closed(schema: Any) -> Any:
    """The schema without room for a key that it does not name. What is published leaves room, so that it lasts."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return inner | ({"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {})


def validate(document: Any, name: str) -> None:
    jsonschema.Draft202012Validator(closed(SCHEMAS[name])).validate(document)
