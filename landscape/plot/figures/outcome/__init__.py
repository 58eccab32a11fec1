"""What came out, and what many runs say together."""
