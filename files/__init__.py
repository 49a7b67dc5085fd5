"""Writing files that are complete or not there at all, their checksum, and the errors that end a script."""
