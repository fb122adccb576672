"""Strategies: files that say what each pool is worth holding. Load one, list a folder, take a signal, audit it."""

from __future__ import annotations

from yieldlab.strategy._file import Strategy, load
from yieldlab.strategy._folders import Found, bundled_folder, discover, find, template

__all__ = ["Found", "Strategy", "bundled_folder", "discover", "find", "load", "template"]
