"""
What a long run has finished, so that it survives being killed at any moment: the output's journal.

While a run goes on there is one file, `OUT.part`, to which each finished row is added as a line, in the order in which
rows finish:

    CRC32 \\t NUMBER \\t KIND \\t JSON \\n

The checksum is of the rest of the line. NUMBER is the row's in the input; KIND is A for an answer, E for an error. Line
0, of kind H, is the run's fingerprint: what an answer depends on. A run that finds such a file takes the valid lines,
cuts off a last one that is not whole, and computes the rows that are missing. When none is, the lines are copied in the
order of their numbers: answers to `OUT`, errors to `OUT.errors.jsonl`, the fingerprint to `OUT.meta.json`, each under a
temporary name first; `OUT` is renamed last and `OUT.part` removed then. So `OUT` is whole or not there, and what a kill
interrupts is done again from the journal.
"""
import fcntl
import json
import os
import re
import time
import zlib
from array import array
from pathlib import Path

from qwen_mindspore.common.files import sync_folder
from qwen_mindspore.common.json_text import dump_json
from qwen_mindspore.common.text import shown

__all__ = ["ANSWER", "ERROR", "Journal", "written"]

HEADER, ANSWER, ERROR = "H", "A", "E"
LINE = re.compile(rb"([0-9a-f]{8})\t(([0-9]+)\t([HAE])\t(.*))\n", re.DOTALL)
TORN_HEADER = re.compile(rb"[0-9a-f]{,8}|[0-9a-f]{8}\t(0(\t(H(\t[^\n]*)?)?)?)?")
SYNC_SECONDS = 5.0  # of work that a power cut may cost; a kill costs nothing that was written


def written(out):
    """The Paths of the files that are made for an output: itself, its journal, its errors, and its fingerprint."""
    out = Path(out)
    return [out, *(out.with_name(out.name + suffix) for suffix in (".part", ".errors.jsonl", ".meta.json"))]


class Journal:
    """
    The finished rows of one run. A context manager; it holds a lock, so there is one run at a time for an output.

    Args:
        out (str | Path): The output; its folder is made if need be.
        fingerprint (dict): What the answers depend on, in JSON's types.
        overwrite (bool): Begin anew, whatever is there. An older output stays until the new one is complete.

    Attributes:
        counts (dict): Kind -> finished rows.
        is_complete (bool): The output is there already, made with the same fingerprint.
        places (array): Row number -> where its line begins in the journal; -1: not finished.

    Raises:
        ValueError: What is there was made with another fingerprint; the message says what differs.
        BlockingIOError: Another process is at work on this output.
    """

    def __init__(self, out, fingerprint, overwrite=False):
        self.out, self.path, self.errors, self.meta = written(out)
        self.fingerprint = json.loads(dump_json(fingerprint))
        self.counts = {ANSWER: 0, ERROR: 0}
        self.is_complete = False
        self.places = array("q")
        self._end, self._synced = 0, time.monotonic()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_locked(self.path)
        try:
            self._begin(overwrite)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __contains__(self, number):
        return number < len(self.places) and self.places[number] >= 0

    def add(self, number, kind, content):
        """
        Write down a finished row. What returns from here survives a kill. A row that is there is left as it is.

        Args:
            number (int): The row's, from 1.
            kind (str): ANSWER or ERROR.
            content (dict): The line of the output, or of the errors.

        Raises:
            OSError: The file can't be written.
        """
        if number in self:
            return
        self._write(number, kind, content)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self):
        """Bring what was written to the disk."""
        os.fsync(self._file)
        self._synced = time.monotonic()

    def finish(self):
        """Make the output, the errors (no file without any) and the fingerprint beside it of what is there."""
        self.sync()
        if self.counts[ERROR]:
            self._copy(ERROR, self.errors)
        else:
            self.errors.unlink(missing_ok=True)
        counts = {"answers": self.counts[ANSWER], "errors": self.counts[ERROR]}
        _replace(self.meta, [json.dumps({**self.fingerprint, "rows": counts}, indent=2).encode() + b"\n"])
        self._copy(ANSWER, self.out)
        self.path.unlink()
        sync_folder(self.out.parent)
        self.is_complete = True

    def close(self):
        """Let go of the file; without a finished row in it, remove it."""
        if self._file is None:
            return
        has_rows = any(self.counts.values()) or os.fstat(self._file).st_size > self._end
        if not has_rows and not self.is_complete:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def _begin(self, overwrite):
        """Take over what is there, or write the first line."""
        header = None if overwrite else self._read()
        if header is not None:
            self._check(self.path, header)
        elif self.out.exists() and not overwrite:
            self._check_complete()
        else:
            os.ftruncate(self._file, 0)
            self._write(0, HEADER, self.fingerprint)
            self.sync()
            sync_folder(self.out.parent)

    def _read(self):
        """
        Find the finished rows, and cut off what is not whole. Returns the fingerprint of line 0, None without one.
        """
        header = None
        with open(self.path, "rb") as file:
            for line in file:
                number, kind, content = _parse(line)
                if self._end == 0 and kind != HEADER and not TORN_HEADER.fullmatch(line):
                    raise ValueError(f"{self.path}: is there already, and not what a run of this program left: name "
                                     "another output, or give --overwrite")
                if kind is None:
                    break
                if kind == HEADER:
                    header = json.loads(content)
                self._note(number, kind, len(line))
        os.ftruncate(self._file, self._end)
        return header

    def _check(self, place, begun):
        """ValueError where a run was begun with another fingerprint."""
        changes = [f"{name} was {shown(old)}, is {shown(new)} now"
                   for name, old, new in _differences(begun, self.fingerprint)]
        if changes:
            raise ValueError(f"{place}: not made with these settings: {'; '.join(changes)}. Go on with the same, name "
                             "another output, or give --overwrite to begin anew")

    def _check_complete(self):
        try:
            made = json.loads(self.meta.read_text(encoding="utf-8"))
            del made["rows"]
        except (OSError, ValueError, TypeError, KeyError):
            raise ValueError(f"{self.out}: is there already, and {self.meta.name} doesn't say how it was made: name "
                             "another output, or give --overwrite") from None
        self._check(self.out, made)
        self.path.unlink()
        self.is_complete = True

    def _write(self, number, kind, content):
        body = f"{number}\t{kind}\t".encode() + dump_json(content)
        line = b"%08x\t%s\n" % (zlib.crc32(body), body)
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._file, rest):]
        self._note(number, kind, len(line))

    def _note(self, number, kind, size):
        """A line of the journal stands at its end."""
        if kind != HEADER and number not in self:
            self.places.extend([-1] * (number + 1 - len(self.places)))
            self.places[number] = self._end
            self.counts[kind] += 1
        self._end += size

    def _copy(self, kind, path):
        """Write the rows of one kind to a file, in order."""
        with open(self.path, "rb") as file:
            _replace(path, (content + b"\n" for _, found, content in self._lines(file) if found == kind))

    def _lines(self, file):
        for place in self.places:
            if place >= 0:
                file.seek(place)
                number, kind, content = _parse(file.readline())
                if kind is None:
                    raise OSError(f"{self.path}: damaged at byte {place}: start again, the rows behind it are done "
                                  "anew")
                yield number, kind, content


def _parse(line):
    """(number, kind, JSON) of a journal's line; all None if it isn't a whole one."""
    match = LINE.fullmatch(line)
    if match is None or int(match[1], 16) != zlib.crc32(match[2]):
        return None, None, None
    return int(match[3]), match[4].decode(), match[5]


def _open_locked(path):
    """The descriptor of a file that no other process has open so."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise BlockingIOError(f"{path}: another process is at work on this output") from None
        # The process that held the lock before may have removed the file in the meantime.
        if path.exists() and os.path.samestat(os.fstat(file), os.stat(path)):
            return file
        os.close(file)


def _replace(path, lines):
    """Write a file under a temporary name, bring it to the disk, and give it its name."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _differences(old, new, name=""):
    """(name, old, new) of the values in which two nested dicts differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(name, old, new)]
    names = [*old, *(key for key in new if key not in old)]
    return [found for key in names
            for found in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
