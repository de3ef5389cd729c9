"""Studies: questions put to the library and answered with figures, one module each."""
