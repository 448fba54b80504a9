"""The docs page: the OpenAPI document as plain HTML, without scripts and without the network."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2rem } code { font: 0.9em ui-monospace, monospace }
details { border: 1px solid #8884; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem }
summary { cursor: pointer } summary b { display: inline-block; min-width: 3.5rem }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid #8884; padding: .2rem .6rem .2rem 0; vertical-align: top }
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}


def render(document: dict[str, Any]) -> str:
    """`document`: an OpenAPI 3 description."""
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation.get("tags", ["Other"])[0], []).append(
                _operation(document, path, method, operation)
            )
    body = "".join(f"<h2>{escape(name)}</h2>{''.join(parts)}" for name, parts in groups.items())
    info = document["info"]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))}</p>"
        f'<p>As a document for tools: <a href="openapi.json">openapi.json</a></p>{body}</body></html>'
    )


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [(p["name"], p.get("schema", {}), p.get("required", False)) for p in operation.get("parameters", [])]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = _resolved(document, content["schema"])
        required = schema.get("required", [])
        rows += [(name, field, name in required) for name, field in schema.get("properties", {}).items()]
    table = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if needed else ''}</td>"
        f"<td>{_type(document, field)}{_note(field)}</td></tr>"
        for name, field, needed in rows
    )
    replies = ", ".join(f"{code} {escape(reply['description'])}" for code, reply in operation["responses"].items())
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
        f"{escape(operation.get('summary', ''))}</summary>"
        f"<p>{escape(operation.get('description', ''))}</p><table>{table}</table><p>Answers: {replies}</p></details>"
    )


def _note(field: dict[str, Any]) -> str:
    return f"<br>{escape(field['description'])}" if "description" in field else ""


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    ref = schema.get("$ref")
    return document["components"]["schemas"][ref.rsplit("/", 1)[1]] if ref else schema


def _type(document: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"<code>{escape(schema['$ref'].rsplit('/', 1)[1])}</code>"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(document, option) for option in schema[several])
    text = escape(str(schema.get("type", "any")))
    if "items" in schema:
        text += f" of {_type(document, schema['items'])}"
    if "enum" in schema:
        text = ", ".join(escape(repr(value)) for value in schema["enum"])
    bounds = {"minimum": "&ge;", "maximum": "&le;", "exclusiveMinimum": "&gt;", "exclusiveMaximum": "&lt;"}
    text += "".join(f" {sign} {schema[key]}" for key, sign in bounds.items() if key in schema)
    if "default" in schema:
        text += f", default <code>{escape(repr(schema['default']))}</code>"
    return text
