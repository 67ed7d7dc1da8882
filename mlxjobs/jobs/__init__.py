"""The life of a run: handed in, started, warned, ended; looked at and acted on from outside."""
