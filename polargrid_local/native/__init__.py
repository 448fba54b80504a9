"""The border: the only importers of the native module."""
