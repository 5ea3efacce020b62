"""The items of a JSON array of any size, one after the other, as bytes: what they say is for others to find out."""
import re
from typing import NamedTuple

__all__ = ["Item", "json_items"]

WHITE = b" \t\r\n"  # JSON's white space
STRUCTURE = re.compile(rb'["\[\]{},]')
IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
CLOSED_BY = {ord("["): ord("]"), ord("{"): ord("}")}
PIECE = 2**20  # bytes that are read at once


class Item(NamedTuple):
    """An item: its text, None where it is too long to be kept; how deep its lists and objects are nested."""

    text: bytes | None
    depth: int


def json_items(file, longest):
    """
    The items of the array that a file holds.

    Args:
        file: Open for reading bytes, where the array begins. Nothing but white space in it is an empty array.
        longest (int): Bytes of an item that are kept.

    Yields:
        Item, whose text need not be JSON; its brackets and quotes are.

    Raises:
        ValueError: No array; brackets that don't fit each other; the file ends within the array or goes on behind it.
    """
    reader = _Reader(longest)
    while piece := file.read(PIECE):
        yield from reader.read(piece)
    reader.end()


class _Reader:
    """Where the reading of an array has come to."""

    def __init__(self, longest):
        self.longest = longest
        self.open = bytearray()  # what closes the lists and objects that are open, the array's own first
        self.is_over = self.in_string = False
        self.rest = b""  # a backslash at the end of a piece
        self.number = 0  # of the item that is read
        self._begin()

    def _begin(self):
        self.item, self.size, self.depth = [], 0, 0
        self.number += 1

    def read(self, piece):
        """The items that end in a piece."""
        piece, self.rest = self.rest + piece, b""
        place = kept = 0  # what has been looked at; what has been put into the item
        if not self.open:
            place = kept = self._outside(piece, 0)
        while place < len(piece):
            if self.in_string:
                place = IN_STRING.match(piece, place).end()
                if place == len(piece):
                    break
                if piece[place] == ord("\\"):  # the last byte: what it escapes is in the next piece
                    piece, self.rest = piece[:-1], b"\\"
                    break
                self.in_string = False
                place += 1
                continue
            found = STRUCTURE.search(piece, place)
            if found is None:
                break
            place, byte = found.end(), found[0][0]
            if byte == ord('"'):
                self.in_string = True
            elif byte in CLOSED_BY:
                self.open.append(CLOSED_BY[byte])
                self.depth = max(self.depth, len(self.open) - 1)
            elif byte != ord(",") and byte != self.open.pop():
                raise ValueError(f"invalid JSON: item {self.number}: a {chr(byte)} that closes nothing")
            if not self.open or (len(self.open) == 1 and byte == ord(",")):
                self._keep(piece[kept:found.start()])
                kept = place
                yield from self._ended(byte == ord(","))
            if not self.open:
                self._outside(piece, place)
                return
        self._keep(piece[kept:])

    def _outside(self, piece, place):
        """Look at what is before the array, or behind it; where that ends."""
        rest = piece[place:].lstrip(WHITE)
        if not rest:
            return len(piece)
        if self.is_over:
            raise ValueError("invalid JSON: there is more behind the array")
        if not rest.startswith(b"["):
            raise ValueError(f"expected a JSON array, found {rest[:1]!r} at its beginning; a file with an object on "
                             "each line is --input_format jsonl")
        self.open.append(ord("]"))
        return len(piece) - len(rest) + 1

    def _keep(self, part):
        """Put what was read to the item, as long as that is not too long."""
        self.size += len(part)
        if self.size > self.longest:
            self.item = None
        if self.item is not None:
            self.item.append(part)

    def _ended(self, is_comma):
        """The item that ends here; none in an empty array."""
        self.is_over = not is_comma
        text = None if self.item is None else b"".join(self.item).strip(WHITE)
        if text != b"" or is_comma or self.number > 1:
            yield Item(text, self.depth)
        self._begin()

    def end(self):
        """ValueError where the file ends within the array."""
        if self.open:
            raise ValueError(f"invalid JSON: item {self.number}: the file ends within the array")
