"""Data sets: registration, validation, conversion, the shapes data set and the training loader."""
