"""Functions of `os` that alter folders, replaced for a test."""
import os
import pathlib


def replace_operation(monkeypatch, name, function):
    """Put the function in the place of `os.NAME`; for `Path` as well, which on Python 3.10 has its own reference."""
    monkeypatch.setattr(os, name, function)
    if hasattr(pathlib, "_NormalAccessor"):
        monkeypatch.setattr(pathlib._NormalAccessor, name, staticmethod(function))
