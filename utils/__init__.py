"""One file a job, each named for it."""
