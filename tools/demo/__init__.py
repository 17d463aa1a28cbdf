"""`make demo`: the whole chain on a real cluster, as a new user would drive it."""
