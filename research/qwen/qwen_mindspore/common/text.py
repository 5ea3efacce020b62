"""How messages show values."""

__all__ = ["listed", "shown"]


def shown(value, limit=60):
    """`repr(value)`, cut off where it is longer than `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit - 3] + "..."


def listed(names, limit=200):
    """Names with commas between them, on one line, cut off where they are longer than `limit` characters together."""
    text = ", ".join(name if isinstance(name, str) and name.isprintable() else repr(name) for name in names)
    return text if len(text) <= limit else text[:limit - 3] + "..."
