"""What the API answers over an engine, without HTTP: the server and the SDK drop-in both stand on it."""
