"""Findings on disk: each a folder with the files of the case, and ``case.json``."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from tests.fuzz.children import Finding

#: Folders that are written of findings of one kind: the same exception at the same place.
_MOST_OF_A_KIND = 2


class Findings:
    """Those of one run, below ``folder``; ``kinds`` counts them."""

    def __init__(self, folder: Path, seed: str) -> None:
        self._folder = folder
        self._seed = seed
        self.kinds: Counter[tuple[str, str]] = Counter()

    def keep(self, finding: Finding) -> None:
        """Count it, and write its folder where it is one of the first of its kind."""
        outcome, target = finding.outcome, finding.target
        kind = outcome.kind, outcome.place
        self.kinds[kind] += 1
        if self.kinds[kind] > _MOST_OF_A_KIND:
            return
        folder = self._folder / f"{target.name}-{outcome.kind.replace(' ', '')}-{finding.number}"
        shutil.rmtree(folder, ignore_errors=True)
        target.write(folder)
        name, content = target.mutate(self._seed, finding.number)
        (folder / name).write_bytes(content)
        target.case.save(
            folder,
            target=target.name,
            seed=self._seed,
            number=finding.number,
            changed=name,
            place=outcome.place,
            said=outcome.said.splitlines(),
        )

    def describe(self) -> str:
        """A line for each kind."""
        rows = (f"{n:6} x {kind} at {place}" for (kind, place), n in self.kinds.most_common())
        return "\n".join(rows) or "no defects"
