"""The benchmark: ``python -m tests.bench`` (see ``--help``); pytest collects nothing here."""
