"""
The page /docs: what /openapi.json says, to be read. Swagger's page would be 1.5 MB of somebody else's JavaScript, or
come from another origin, which the content security policy forbids; this one is text.
"""
import html
import json
import re

__all__ = ["reference_page"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
@media (prefers-color-scheme: dark) { body { background: #16181d; color: #e6e6e6; } a { color: #8ab4f8; } }
code { font: 0.9em ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid #8884; }
h2 { margin-top: 2.5rem; } summary { cursor: pointer; }
"""


def reference_page(openapi):
    """
    Args:
        openapi (dict): An OpenAPI document.

    Returns:
        str, HTML without scripts and without anything from elsewhere.
    """
    parts = [_operation(path, method, operation, openapi) for path, methods in openapi["paths"].items()
             for method, operation in methods.items()]
    title, version = html.escape(openapi["info"]["title"]), html.escape(openapi["info"]["version"])
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><link rel="icon" href="icon.svg">'
            f"<style>{STYLE}</style></head><body>"
            f'<h1>{title} {version}</h1><p>As a document for programs: <a href="openapi.json">openapi.json</a>.</p>'
            f"{''.join(parts)}</body></html>")


def _operation(path, method, operation, openapi):
    text = _marked(operation.get("description") or operation.get("summary", ""))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    fields = _fields(_resolved(body, openapi), openapi) if body else ""
    return f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{text}</p>{fields}"


def _marked(text):
    """A text as HTML; what stands in `...` as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _resolved(schema, openapi):
    while "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _fields(schema, openapi):
    required, rows = schema.get("required", []), []
    for name, field in schema.get("properties", {}).items():
        default = f" = {json.dumps(field['default'], ensure_ascii=False)}" if field.get("default") is not None else ""
        mark = ", required" if name in required else default
        rows.append(f"<tr><td><code>{html.escape(name)}</code></td><td><code>{html.escape(_kind(field, openapi))}"
                    f"</code>{html.escape(mark)}</td><td>{_marked(field.get('description', ''))}</td></tr>")
    return f"<table><tr><th>field</th><th>value</th><th></th></tr>{''.join(rows)}</table>" if rows else ""


def _kind(field, openapi, depth=0):
    """A schema in a few words."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " | ".join(dict.fromkeys(_kind(branch, openapi, depth) for branch in field[key]))
    if "enum" in field or "const" in field:
        return " | ".join(json.dumps(value) for value in field.get("enum", [field.get("const")]))
    kind = field.get("type", "any")
    if kind == "array" and depth < 3:
        return f"[{_kind(field.get('items', {}), openapi, depth + 1)}]"
    bounds = [f"{sign} {field[key]}" for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
              if abs(field.get(key, 1e99)) < 1e15]
    return " ".join([kind, *bounds])
