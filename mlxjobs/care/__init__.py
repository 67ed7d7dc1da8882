"""Is it well, and what may go: fsck, drills, snapshots that nobody needs."""
