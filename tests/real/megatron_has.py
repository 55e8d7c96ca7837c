"""What the installed megatron-core has, by its files: to import it takes seconds."""

from importlib.util import find_spec
from pathlib import Path


def _find_library() -> Path:
    spec = find_spec("megatron.core")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


_LIBRARY = _find_library()
_PATTERNS = ("models/hybrid/hybrid_layer_allocation.py", "ssm/mamba_hybrid_layer_allocation.py")


def _read(*names: str) -> str:
    found = (path for path in map(_LIBRARY.joinpath, names) if path.exists())
    return next((path.read_text() for path in found), "")


#: Whether the layers of a HybridModel, or of a MambaModel before it, may have experts, latent
#: attention, gated DeltaNet; and whether such a model predicts further.
_SYMBOLS = _read(*_PATTERNS)
MIXED_EXPERTS = "MOE =" in _SYMBOLS
MIXED_LATENT = "MLA =" in _SYMBOLS
MIXED_DELTA_NET = "GDN =" in _SYMBOLS
MIXED_AHEAD = "MTP_SEPARATOR =" in _SYMBOLS
#: What its Mamba imports, and torch for CPUs comes without.
TRITON = find_spec("triton") is not None
#: Whether it decides on the norms of latent attention, so that queries always have one, and those
#: of sparse attention are by themselves.
NORMED_QUERIES = bool(_read("transformer/mla_qk_norm_config.py"))
