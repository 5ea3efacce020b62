"""How messages show values."""

__all__ = ["readable_bytes", "shown"]


def shown(value, limit=60):
    """`repr(value)`, cut off where it is longer than `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit - 3] + "..."


def readable_bytes(count):
    """A number of bytes for a person: 3.7 GB, 12.5 MB, 775 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
