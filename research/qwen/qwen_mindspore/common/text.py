"""How messages show values."""

__all__ = ["shown"]


def shown(value, limit=60):
    """`repr(value)`, cut off where it is longer than `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit - 3] + "..."
