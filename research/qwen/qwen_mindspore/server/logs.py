"""What a server writes down: lines of JSON on standard error, one a request; never what was said, unless asked to."""
import logging
import sys
import time
from contextvars import ContextVar

from qwen_mindspore.common.json_text import dump_json

__all__ = ["LOG", "NOTES", "log", "note", "set_up_logs"]

LOG = logging.getLogger("qwen.server")
NOTES = ContextVar("notes", default=None)  # dict, what the line of the request at hand has besides
OF_UVICORN = "uvicorn.error"  # its errors and its own log: access lines are ours


class _JsonLine(logging.Formatter):
    """A record as one line of JSON, whatever its text holds: nobody forges a line by a line end in a header."""

    def format(self, record):
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{when}.{int(record.msecs):03d}Z", "level": record.levelname.lower(),
                "message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return dump_json(line).decode("utf-8")


def set_up_logs(stream=None, level=logging.INFO):
    """
    Let the server's log, and uvicorn's warnings, go to a stream.

    Args:
        stream (file): Default: standard error, whatever that is when a line is written.
        level (int): The least that is written of ours.
    """
    handler = logging.StreamHandler(stream) if stream else _StandardError()
    handler.setFormatter(_JsonLine())
    for name, least in ((LOG.name, level), (OF_UVICORN, logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)


class _StandardError(logging.StreamHandler):
    @property
    def stream(self):
        return sys.stderr

    @stream.setter
    def stream(self, _):
        """It is what it is."""


def log(message, level=logging.INFO, **fields):
    """
    Write a line.

    Args:
        message (str): What happened.
        level (int): How bad that is.
        fields: What else the line has: numbers, text, lists and dicts of them.
    """
    LOG.log(level, message, extra={"fields": fields})


def note(**fields):
    """Add to the line of the request that is being answered, if one is."""
    notes = NOTES.get()
    if notes is not None:
        notes.update(fields)
