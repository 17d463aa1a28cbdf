"""Pure decisions: a frozen snapshot and `now` in, domain values out. No I/O, no clock, no randomness."""
