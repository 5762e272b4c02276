"""Files: written so that a crash cannot damage them, read so that a hostile one cannot harm."""
