"""The results of `mlxjobs.frame`, where MLXP 1.0 has them."""

from mlxjobs.frame import DataFrame, GroupedDataFrame
from mlxjobs.rows import DataDict
from mlxjobs.table import LAZYARTIFACT, LAZYDATA

__all__ = ["LAZYARTIFACT", "LAZYDATA", "DataDict", "DataFrame", "GroupedDataFrame"]
