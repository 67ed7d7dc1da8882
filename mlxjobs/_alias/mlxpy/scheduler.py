"""What a scheduler of one's own is made of: the contract of `mlxjobs.scheduler`."""

from mlxjobs.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler

__all__ = ["Fate", "Here", "Job", "JobState", "JobStatus", "Scheduler"]
