"""The ready-made maps of `mlxjobs.maps`."""

from mlxjobs.maps import AggregationMap, AvgStd, Last, Max, Min, MinLast

__all__ = ["AggregationMap", "AvgStd", "Last", "Max", "Min", "MinLast"]
