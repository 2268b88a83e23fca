"""Strict two-way conversion between Hugging Face layouts and fvjax names; see `python -m weights_convert --help`."""

from weights_convert.peft import read_adapters, write_adapters
from weights_convert.read import build, open_checkpoint, read

__all__ = ["build", "open_checkpoint", "read", "read_adapters", "write_adapters"]
