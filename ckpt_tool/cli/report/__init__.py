"""A verification as one HTML file that needs nothing else: no network, no other files."""

from ckpt_tool.cli.report.html import render

__all__ = ["render"]
