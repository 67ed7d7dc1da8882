"""The ready-made artifacts of `mlxjobs.logger.artifacts`."""

from mlxjobs.logger.artifacts import NumpyArray, PNGImage, TorchModel

__all__ = ["NumpyArray", "PNGImage", "TorchModel"]
