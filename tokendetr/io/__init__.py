"""Reading and writing of files that may be damaged or hostile."""
