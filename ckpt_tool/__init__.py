"""Turn sharded training checkpoints into Hugging Face models: exact, safe, streamed."""

from ckpt_tool.version import __version__

__all__ = ["__version__"]
