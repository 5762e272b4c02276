"""Files: written atomically, and read without running code that they may hold."""
