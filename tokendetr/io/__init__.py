"""Files that a crash or a full disk cannot damage."""
