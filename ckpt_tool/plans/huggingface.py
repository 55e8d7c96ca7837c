"""A planned Hugging Face model folder: weights, side files, config, manifest, checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.mapping.casting import find_main_dtype
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.mapping.lora.options import AdapterFiles
from ckpt_tool.mapping.lora.settings import CONFIG
from ckpt_tool.mapping.quantised import find_quantisation
from ckpt_tool.mapping.side_files import SideFiles
from ckpt_tool.plans.card import CARD_NAME, Weights, make_card
from ckpt_tool.plans.checks.judge import Helpless, Judge
from ckpt_tool.plans.checks.opening import Answer
from ckpt_tool.plans.checks.question import PACKED, list_questions
from ckpt_tool.plans.checks.safetensors import require_readable, warn_of_no_library
from ckpt_tool.plans.checks.transformers import TransformersJudge
from ckpt_tool.plans.manifest import encode_json
from ckpt_tool.plans.plan import Plan
from ckpt_tool.plans.usage import Usage, use_adapter, use_model
from ckpt_tool.readers.base import ShardFile
from ckpt_tool.readers.huggingface import open_sound_model
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.safetensors import INDEX_NAME, make_index


@dataclass(frozen=True, kw_only=True)
class HubPlan(Plan):
    """A Hugging Face model folder; ``config``: None for weights alone.

    ``beside``: the files that go along. ``has_card``: with a model card, unless one is among these
    or nothing says what opens the folder. ``adapter``: what is written for peft. ``views``: the
    classes that shall open the model, where these are not the config's alone. ``heard``: what
    transformers was asked about it already.
    """

    config: ModelConfig | None
    beside: SideFiles = field(default_factory=SideFiles)
    has_card: bool = True
    adapter: AdapterFiles | None = None
    views: tuple[View, ...] = ()
    heard: Mapping[str, Answer] = field(default_factory=dict)
    _copied: tuple[ShardFile, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Look at what is copied when all else is written."""
        paths = [found for found in self.beside.files.values() if isinstance(found, Path)]
        object.__setattr__(self, "_copied", tuple(map(ShardFile.stat, paths)))

    @property
    def sources(self) -> Sequence[ShardFile]:
        """The files with tensors, and those that are copied."""
        return [*super().sources, *self._copied]

    @property
    def tensors(self) -> dict[str, LazyTensor]:
        """All tensors; those of an adapter in a folder have names that begin with it."""
        if self.adapter is None:
            return self.model
        beside = {self.adapter.path(name): t for name, t in self.adapter.tensors.items()}
        return self.model | beside

    @property
    def usage(self) -> Usage | None:
        """What opens the folder; None for weights alone."""
        if self.config is not None and self.model:
            dtype = find_main_dtype(self.model.values())
            return use_model(
                self.config,
                "" if dtype is None else dtype.name,
                has_tokenizer=self.beside.tokenizer is not None,
                adapter=self.adapter,
            )
        return None if self.model or self.adapter is None else use_adapter(self.adapter)

    @property
    def card(self) -> bytes | None:
        """The model card to write, if one is."""
        usage = self.usage
        if not self.has_card or usage is None or CARD_NAME in self.beside.files:
            return None
        weights = Weights(self.num_tensors, self.total_bytes)
        return make_card(self.checkpoint, usage, weights, self.lora)

    @property
    def weight_files(self) -> list[PlannedFile]:
        """The files that hold the model itself."""
        return [file for file in self.files if file.role == "weights"]

    def protected(self) -> list[Path]:
        """What is still to be read: the checkpoint, and the folder of the config."""
        folders = [] if self.config is None else [self.config.folder]
        folders += [] if self.beside.tokenizer is None else [self.beside.tokenizer]
        return super().protected() + folders

    def make_judge(self, check_load: bool | None) -> Judge | None:
        """transformers, unless there is no config or nobody wants to know."""
        if self.config is None and check_load:
            raise UsageError(
                "`write.check_load` needs a config: it cannot go with `keep_names=True`"
            )
        if self.config is None or check_load is False:
            return None
        must = check_load is True
        if find_quantisation(self.model) == "packed":
            return Helpless(PACKED, must=must)
        questions = list_questions(self.config, self.views, self.model)
        return TransformersJudge(questions, self.heard, must=must)

    def require_readable(self, folder: Path) -> list[str]:
        """OutputError unless the safetensors library finds in each file what was planned.

        A warning where it is not installed.
        """
        warnings = warn_of_no_library()
        for file in self.files if not warnings else ():
            require_readable(file, folder / file.name)
        return warnings

    def side_files(self) -> Iterator[tuple[str, bytes]]:
        """What goes along with the weights, a card, and the settings of an adapter."""
        if self.config is not None:
            yield from self.beside.read()
        card = self.card
        if card is not None:
            yield CARD_NAME, card
        if self.adapter is not None:
            yield self.adapter.path(CONFIG), encode_json(self.adapter.config)

    def completing_files(self) -> Iterator[tuple[str, bytes]]:
        """Index and config: the latter completes it."""
        index = make_index(self.weight_files)
        if index is not None:
            yield INDEX_NAME, index
        if self.config is not None:
            yield "config.json", self.config.to_bytes()

    def read_back(self, folder: Path) -> dict[str, LazyTensor]:
        """What is in the files, the adapter's with the names that it has in the plan."""
        found: dict[str, LazyTensor] = {}
        if self.model:
            found |= open_sound_model(folder)
        if self.adapter is not None:
            beside = open_sound_model(folder / self.adapter.folder)
            found |= {self.adapter.path(name): tensor for name, tensor in beside.items()}
        return found
