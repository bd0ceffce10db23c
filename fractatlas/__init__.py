"""Detect bone fractures in radiographs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fractatlas.inference.model import Ensemble, Model, Prediction, load_model

__version__ = "0.2.0"
__all__ = ["Ensemble", "Model", "Prediction", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # On first use, so that commands that need no network do not import torch.
    if name in ("Ensemble", "Model", "Prediction", "load_model"):
        from fractatlas.inference import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
