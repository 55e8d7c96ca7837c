"""``python -m ckpt_tool``."""

import sys

if __name__ == "__main__":
    try:
        from ckpt_tool.cli.app import main
    except KeyboardInterrupt:  # where it takes a while to load
        sys.exit(130)
    main()
