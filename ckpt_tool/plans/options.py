"""What writing can be told, and what it tells: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.mapping.lora.options import LoraNote
from ckpt_tool.plans.usage import Usage
from ckpt_tool.writers.places import Place
from ckpt_tool.writers.stream import WrittenFile


@dataclass(frozen=True)
class WriteOptions:
    """How an output is written. The output always appears complete, or not at all.

    ``verify``: read back what was written, and compare it bit for bit with what was planned.
    ``check_load``: have the library that will open the output say whether it does, before it
    appears: transformers for a model folder, from names and shapes; megatron-core for its own
    checkpoints, by loading the result. None: a model folder with a config is checked, with a
    warning where transformers does not know its class; True: that is an error.
    ``check_crc``: hold what is read against the CRC-32 that archives of torch have for it. None:
    with ``fsync``, all that is read anyway, and what little is missing then; True: whatever is
    missing of the records in which tensors lie is read as well; False: pickles and small records
    only.
    ``overwrite``: replace an output that is there, once everything else has worked.
    ``resume``: keep what an interrupted run has finished, after checking it; where the output is
    complete already, write nothing.
    ``fsync``: wait until everything is on disk; without, the kernel writes when it likes, and a
    power cut may lose the result.
    ``direct``: write files with tensors past the page cache (``O_DIRECT``) where the file system
    can; None: where there is ``fsync``.
    ``manifest``: say in ``ckpt_manifest.json`` where the output came from and what its files are.
    Without it ``resume`` does not know an output that is complete.
    """

    verify: bool = False
    check_load: bool | None = None
    overwrite: bool = False
    resume: bool = False
    fsync: bool = True
    direct: bool | None = None
    manifest: bool = True
    check_crc: bool | None = None

    @property
    def is_direct(self) -> bool:
        """Whether files with tensors are written past the page cache, where that is possible."""
        return self.fsync if self.direct is None else self.direct


@dataclass(frozen=True)
class Cast:
    """Tensors that changed dtype.

    ``source``, ``target``: names of dtypes (``float32``). ``max_abs_error``: the largest absolute
    difference that rounding made in any of their elements; infinity where a finite value did not
    fit, so that it became infinite. ``offset``: not 0 where elements were stored as what they are
    more than this number, or less: their sums were made in ``source``, and rounded.
    """

    source: str
    target: str
    num_tensors: int
    max_abs_error: float
    offset: float = 0.0


@dataclass(frozen=True)
class LoadCheck:
    """What opened: the class, how many tensors it wants and found, and the library it is of.

    ``library``: name and version (``transformers 5.1.0``). ``num_ignored``: tensors that no class
    of the library has a place for, so that all ignore them. ``num_other_heads``: tensors that this
    class ignores and another class or trl reads; ``also``: the other classes that opened.
    """

    architecture: str
    num_tensors: int
    library: str
    num_ignored: int = 0
    num_other_heads: int = 0
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class CrcCheck:
    """What was read of files with checksums; where a record was not as it was written, an error.

    ``num_records``: storages that have the CRC-32 that they were written with; ``num_files``: in
    which they are. ``num_unchecked``: storages of which only a part was read. ``unsaid``: files
    that were written without checksums, at least in part.
    """

    num_records: int
    num_files: int
    num_unchecked: int
    unsaid: list[str]


@dataclass(frozen=True)
class WriteResult:
    """What was written.

    ``format``: of the source (``fsdp``, ``torch_dist``, ...), which was found at ``source``, at or
    below what was named; ``step``: of training, and ``role``, as ``actor``, None where nothing says
    it. ``output``: the folder, links followed, or the address. ``num_tensors``, ``total_bytes``,
    ``files``: the tensors written, and the files that hold them, headers included; small files are
    not counted.
    ``casts``: by pair of dtypes. ``dropped``: names left out on purpose, each with the reason.
    ``seconds``: all of the work, checks included. ``bytes_per_second``: of ``total_bytes`` while
    they were written; 0.0 where they were there before.
    ``verified``: whether everything read back as planned; None: nobody looked. ``differences``:
    sorted names of tensors that did not; nothing was published then.
    ``load_check``: what the library said that was asked; None: none was.
    ``lora``: what became of adapters; None: there were none. ``filled``: sorted names of tensors
    that were taken from another model.
    ``already_complete``: all of it was there before, and nothing was written. ``manifest``: whether
    there is one in ``output``.
    ``crc``: what the checksums of the sources say; None: they have none, or nobody asked.
    ``float32``: why most weights are, where nobody asked for it; else empty.
    ``usage``: what opens it; None: weights without a config, or for megatron-core.
    """

    format: str
    source: Path
    step: int | None
    role: str | None
    output: Place
    num_tensors: int
    total_bytes: int
    files: list[WrittenFile]
    casts: list[Cast]
    seconds: float
    bytes_per_second: float
    verified: bool | None
    warnings: list[str]
    dropped: dict[str, str]
    differences: list[str] = field(default_factory=list)
    load_check: LoadCheck | None = None
    lora: LoraNote | None = None
    filled: list[str] = field(default_factory=list)
    already_complete: bool = False
    manifest: bool = True
    crc: CrcCheck | None = None
    float32: str = ""
    usage: Usage | None = None
