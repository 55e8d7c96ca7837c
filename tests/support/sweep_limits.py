"""What the sweep of every class leaves out, and why: nothing else may be.

A class that transformers brings and the rules cannot make small fails the sweep, until
:mod:`tests.support.shrinking` knows it, or it is here.
"""

from __future__ import annotations

#: Of these no model is built: class -> why.
UNBUILT: dict[str, str] = {}
#: These are not run on an input: class -> why.
NOT_RUN: dict[str, str] = {}
