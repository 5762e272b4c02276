"""Private names of other libraries that this one touches, each in one place."""
