"""Private names of other libraries that this one depends on, each used in one place."""
