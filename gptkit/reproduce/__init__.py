"""Verifies runs: their files, and that training them again gives the same result bit for bit."""
