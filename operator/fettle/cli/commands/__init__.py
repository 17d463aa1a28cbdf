"""One command of `fettle` or `kubectl fettle` a file."""
