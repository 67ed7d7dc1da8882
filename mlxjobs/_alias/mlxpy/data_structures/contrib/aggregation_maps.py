"""The ready-made maps of `mlxjobs.reader.maps`."""

from mlxjobs.reader.maps import AggregationMap, AvgStd, Last, Max, Min, MinLast

__all__ = ["AggregationMap", "AvgStd", "Last", "Max", "Min", "MinLast"]
