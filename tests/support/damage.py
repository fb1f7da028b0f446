"""Damage to files on disk."""

from __future__ import annotations

from pathlib import Path


def flip_a_byte(file: Path) -> None:
    """Changes a byte in the middle of a file, which its size does not show."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    """Cuts off the last 100 bytes of a file."""
    file.write_bytes(file.read_bytes()[:-100])
