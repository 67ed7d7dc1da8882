"""The results of `mlxjobs.frame`, where MLXP 0.1 had them."""

from mlxjobs.frame import DataDictList, GroupedDataDicts
from mlxjobs.maps import AggregationMap
from mlxjobs.rows import DataDict
from mlxjobs.table import LAZYDATA

__all__ = ["LAZYDATA", "AggregationMap", "DataDict", "DataDictList", "GroupedDataDicts"]
