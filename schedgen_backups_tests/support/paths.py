"""Paths of the tests' files."""

from __future__ import annotations

from pathlib import Path

FORMAT1 = Path(__file__).parent / "format1"
"""A backup directory of version 0.1.0 of 2026-11-26 (c692962) with one point."""
