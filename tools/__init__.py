"""Commands of a checkout: soak, sweep, fuzz, speed and others that take too long for the test suite."""
