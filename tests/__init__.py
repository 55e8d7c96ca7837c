"""Tests, laid out as `ckpt_tool/` is."""
