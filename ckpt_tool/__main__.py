"""``python -m ckpt_tool``."""

from ckpt_tool.cli.app import main

if __name__ == "__main__":
    main()
