"""A cluster of one machine: a queue, its workers, and the files in which they meet."""
