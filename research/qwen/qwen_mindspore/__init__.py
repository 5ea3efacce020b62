"""Qwen (first generation) on MindSpore and MindFormers. The rooms and what may import what: see CONTRIBUTING.md."""
__version__ = "0.2.0"
