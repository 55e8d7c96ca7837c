"""transformers as a library: whether it can be imported, what it knows, and that it stays quiet.

Importing it takes seconds, and it can be absent, broken, or older than a model: each is something
else, and none of them may pass for "this family keeps its names".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.packages import OF_TRANSFORMERS, list_missing, say_install
from ckpt_tool.mapping.config import ModelConfig

_WEIGHTS_ALONE = "Write the weights alone, under the names they have, with `keep_names=True`."


def import_library(module: str, needed: str) -> Any:
    """The module of transformers; ``needed`` says what for.

    MappingError where it cannot be imported, with the reason: nothing is then known of the model.
    """
    try:
        return import_module(module)
    except Exception as error:  # a broken installation raises whatever it likes
        missing = list_missing(OF_TRANSFORMERS)
        mend = f"Install it: {say_install(missing)}. " if missing else "Mend the installation. "
        raise MappingError(
            f"{needed}, and transformers cannot be imported: {describe_error(error)}",
            hint=f"{mend}{_WEIGHTS_ALONE}",
        ) from error


def find_unknown(config: ModelConfig) -> str:
    """What of the model the installed transformers does not know; empty where it knows it.

    MappingError where transformers cannot be imported, or the class in it cannot.
    """
    needed = f"the names of model type {config.model_type or '(none)'} are looked up there"
    transformers = import_library("transformers", needed)
    known = import_library("transformers.models.auto.configuration_auto", needed).CONFIG_MAPPING
    if config.model_type not in known:
        return f"transformers {transformers.__version__} does not know it"
    if not config.architecture:
        return f"neither config.json nor transformers {transformers.__version__} names its class"
    try:
        found = find_class(config)
    except Exception as error:  # the class is imported here, with all that it needs
        refuse_unbuilt(config, error)
    if found is None:
        return f"transformers {transformers.__version__} has no class {config.architecture!r}"
    return ""


def find_class(config: ModelConfig) -> Any:
    """The class of transformers that the config names; None where it has none.

    Auto classes go by the model type, so that on the Hub there are names with other capitals than
    transformers has: ``LLaMAForCausalLM``, ``ExaoneMoEForCausalLM``. Raises what it raises where
    the class cannot be imported.
    """
    import transformers

    named = config.architecture
    found = getattr(transformers, named, None)
    if found is not None:
        return found
    folded = _fold(named)
    alike = (getattr(transformers, each) for each in dir(transformers) if _fold(each) == folded)
    return next((each for each in alike if _is_of(each, config.model_type)), None)


def _fold(name: str) -> str:
    return name.replace("_", "").casefold()


def _is_of(model_class: Any, model_type: str) -> bool:
    """Whether a class is of models of this type."""
    return getattr(getattr(model_class, "config_class", None), "model_type", None) == model_type


def refuse_unbuilt(config: ModelConfig, error: Exception) -> NoReturn:
    """MappingError for a model that transformers knows and cannot build, because of ``error``."""
    raise MappingError(
        f"transformers cannot build {config.architecture} of model type {config.model_type}, which"
        f" says what its tensors are called: {describe_error(error)}",
        hint=f"Install what is missing, or correct config.json. {_WEIGHTS_ALONE}",
    ) from error


def describe_error(error: Exception) -> str:
    """An error of somebody else in a line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def quieten() -> Iterator[None]:
    """Have transformers log errors only and show no bars inside the block; then as it was."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with _hide_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _hide_bars() -> Iterator[None]:
    """Transformers switches huggingface_hub's bars along with its own: both are put back.

    It warns where HF_HUB_DISABLE_PROGRESS_BARS says that they are not to be switched.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    were_disabled = are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable_progress_bar()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.enable_progress_bar()
            if were_disabled:
                disable_progress_bars()
