"""Which models are in memory, who uses them, and what was used. No HTTP: the server and the SDK drop-in both stand on it."""
