"""Launch, freeze, queue, preempt and resume Hydra experiments on a cluster or a laptop."""

__version__ = "0.1.0.dev0"
