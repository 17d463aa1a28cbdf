"""`fettle` and `kubectl fettle`: the same plan without a cluster, and commands for one with."""
