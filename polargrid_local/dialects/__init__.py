"""Dialects: the APIs that clients already speak, in the words of this one. Pure."""
