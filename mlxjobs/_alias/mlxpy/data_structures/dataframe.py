"""The results of `mlxjobs.reader.frame`, where MLXP 1.0 has them."""

from mlxjobs.reader.frame import DataFrame, GroupedDataFrame
from mlxjobs.reader.rows import DataDict
from mlxjobs.reader.table import LAZYARTIFACT, LAZYDATA

__all__ = ["LAZYARTIFACT", "LAZYDATA", "DataDict", "DataFrame", "GroupedDataFrame"]
