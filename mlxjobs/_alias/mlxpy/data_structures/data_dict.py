"""The results of `mlxjobs.reader.frame`, where MLXP 0.1 had them."""

from mlxjobs.reader.frame import DataDictList, GroupedDataDicts
from mlxjobs.reader.maps import AggregationMap
from mlxjobs.reader.rows import DataDict
from mlxjobs.reader.table import LAZYDATA

__all__ = ["LAZYDATA", "AggregationMap", "DataDict", "DataDictList", "GroupedDataDicts"]
