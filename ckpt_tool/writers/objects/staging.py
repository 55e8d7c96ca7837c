"""An output in an object store, which appears when all of it is there.

Every file is sent as it is made, and no object is completed before the last byte of the last has
left: until then nobody sees anything but the mark of the run. Then the objects appear within
seconds, those with tensors first, and last what makes a model of them. Whatever interrupts the work
before that leaves what was there; what interrupts it then has this run remove what it let appear,
and a run that is killed then is cleared up after by the next.

Nothing replaces all objects at once. With ``replace`` what is there goes when everything else is
done, what makes a model of it first: for a moment there is none, and never half of two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ckpt_tool.common.errors import CkptError, OutputError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.shadow import reach
from ckpt_tool.common.wording import count_noun
from ckpt_tool.writers.objects.bucket import Bucket
from ckpt_tool.writers.objects.mark import Mark
from ckpt_tool.writers.objects.object_file import ObjectFile
from ckpt_tool.writers.objects.sending import Sender, Upload
from ckpt_tool.writers.objects.target import list_names, require_empty
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.preparation import Preparation
from ckpt_tool.writers.stream import WrittenFile
from ckpt_tool.writers.target import PARTIAL

#: What makes something of a folder that programs would open.
_COMPLETING = re.compile(
    r"(.*/)?((adapter_)?config\.json|.*\.index\.json|\.metadata|metadata\.json"
    r"|latest_checkpointed_iteration\.txt|ckpt_manifest\.json)"
)
#: Objects that are completed at a time.
_AT_ONCE = 32


class ObjectStaging(Preparation):
    """The place of :class:`~ckpt_tool.writers.staging.Staging`, whose words these are.

    Every process of a run sends its files, and lets them appear with :meth:`reveal`; one calls
    :meth:`open`, puts the small files, and publishes.
    """

    out: Address
    direct = False

    def __init__(self, out: Address) -> None:
        self.out = out
        self.path = Path()
        self.finished: dict[str, WrittenFile] = {}
        self.warnings: list[str] = []
        self._is_published = False
        self._sender = Sender()
        self._bucket = Bucket(out, self._sender)
        self._mark = Mark(self._bucket, self._sender)
        self._sent: dict[str, Upload] = {}
        self._open: list[ObjectFile] = []
        self._small: dict[str, Upload] = {}
        self._old: list[str] = []
        self._shown: list[str] = []
        self._is_replacing = False
        self._is_left = False
        self._sketch: TemporaryDirectory[str] | None = None

    def open(self, plan: str, *, resume: bool, replace: bool) -> tuple[Path, list[WrittenFile]]:
        """Put the mark; what is there must be nothing, unless it is to be replaced.

        OutputError where it must stay, or another run writes. Raises what :class:`.Bucket` raises.
        """
        left = self._mark.take()
        try:
            self._bucket.delete(left)
            self._old = [name for name in list_names(self._bucket) if name not in left]
            require_empty(self.out, [] if replace else self._old)
        except BaseException:
            self._mark.remove()
            raise
        if left:
            said = "what a run had put there that was killed was removed"
            self.warnings.append(f"{self.out}: {said}")
        return Path(), []

    def join(self, path: Path, finished: list[WrittenFile]) -> None:
        """Work where another process has put the mark."""

    def create(self, file: PlannedFile) -> ObjectFile:
        """Begin a file with tensors."""
        upload = self._sent[file.name] = self._bucket.begin(file.name, file.size)
        self._open.append(ObjectFile(self._sender, upload, file.size))
        return self._open[-1]

    def stop(self) -> None:
        """Have nobody wait for what is on its way."""
        for file in self._open:
            file.stop()

    def record(self, written: WrittenFile) -> None:
        """Note a file whose bytes have all left."""
        self.finished[written.name] = written

    def put(self, name: str, content: bytes) -> None:
        """Send a small file. What completes the output is put last."""
        upload = self._small[name] = self._bucket.begin(name, len(content))
        file = ObjectFile(self._sender, upload, len(content))
        file.write(memoryview(content), len(content), 0)
        file.settle()

    def sketch(self, files: Sequence[PlannedFile]) -> Path:
        """A folder with the headers of files, as long as these will be, and nothing in them."""
        self._sketch = TemporaryDirectory(prefix="ckpt-")
        self.path = Path(self._sketch.name)
        for file in files:
            path = self.path / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as opened:
                opened.write(next((item for item in file.items if isinstance(item, bytes)), b""))
                opened.truncate(file.size)
        return self.path

    def read_again(self, files: Sequence[PlannedFile], small: Iterable[tuple[str, bytes]]) -> Path:
        """A folder whose files are read from the store; what is ``small`` is in it."""
        folder = reach(str(self.out))
        for name, content in small:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    def announce(self, names: Iterable[str]) -> None:
        """Now objects appear, those with tensors among ``names``; what is replaced goes."""
        self._mark.announce([*names, *self._small, *self._old])
        first = [name for name in self._old if _COMPLETING.fullmatch(name)]
        self._is_replacing = bool(self._old)
        self._bucket.delete(first)
        self._bucket.delete(set(self._old).difference(first))

    def reveal(self) -> None:
        """Let the files with tensors appear that this process has sent."""
        for batch in _batches(self._sent, _AT_ONCE):
            self._complete(batch, self._sent)

    def publish(self, *, replace: bool) -> list[str]:
        """Let the small files appear, one after the other; warnings, if any."""
        for name in self._small:
            self._complete([name], self._small)
        self._is_published = True
        try:
            self._mark.remove()
        except (CkptError, OSError) as error:
            self.warnings.append(f"{self.out.join(PARTIAL)} could not be removed: {error}")
        self._close()
        return self.warnings

    @property
    def is_published(self) -> bool:
        """Whether all of it has appeared."""
        return self._is_published

    def tidy(self) -> list[str]:
        """Nothing is half done here: :meth:`open` sees what a killed run left."""
        return []

    def clear(self, plan: str) -> list[str]:
        """Where the output is complete: remove the mark of a run that was killed; warnings."""
        try:
            if self._bucket.get(PARTIAL) is not None:
                self._mark.take()
        except OutputError as error:
            return [str(error)]
        finally:
            self.leave()
        return []

    def leave(self) -> None:
        """Leave what is published."""
        with suppress(CkptError, OSError):
            self._mark.remove()
        self._close()

    def abandon(self) -> str:
        """Leave nothing behind; what is to be said of it, empty if there is nothing."""
        if self._is_left:
            return ""
        uploads = [*self._sent.values(), *self._small.values()]
        for upload in uploads:
            upload.give_up()
        for upload in uploads:
            upload.forget()
        said = ""
        try:
            self._bucket.delete(self._shown)
            self._mark.remove()
        except (CkptError, OSError) as error:
            left = count_noun(len(self._shown), "object")
            said = f"{left} that this run put at {self.out} could not be removed ({error})."
        if self._is_replacing:
            said = f"What was at {self.out} is gone: it was being replaced. {said}".strip()
        self._close()
        return said

    def discard(self) -> str:
        """The same: nothing can be kept here."""
        return self.abandon()

    def _complete(self, names: Sequence[str], uploads: dict[str, Upload]) -> None:
        self._shown += names
        for name in names:
            uploads[name].complete()
        for name in names:
            uploads[name].wait()

    def _close(self) -> None:
        self._is_left = True
        if self._sketch is not None:
            self._sketch.cleanup()
        self._sender.close()


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    rows = list(names)
    return (rows[at : at + size] for at in range(0, len(rows), size))
