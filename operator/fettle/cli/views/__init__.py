"""How runs and rollouts look in a terminal."""
