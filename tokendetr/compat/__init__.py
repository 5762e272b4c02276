"""What depends on which other libraries are installed: their private names, and stand-ins."""
