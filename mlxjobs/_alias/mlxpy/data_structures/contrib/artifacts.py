"""The ready-made artifacts of `mlxjobs.artifacts`."""

from mlxjobs.artifacts import NumpyArray, PNGImage, TorchModel

__all__ = ["NumpyArray", "PNGImage", "TorchModel"]
