"""Qwen (first generation) on MindSpore and MindFormers. The rooms and what may import what: see CONTRIBUTING.md."""
from qwen_mindspore.common.folders import provide_folders

__version__ = "0.2.0"

provide_folders()
