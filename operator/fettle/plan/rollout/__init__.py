"""A rollout, decided: which revision is stable, how much traffic the canary gets, when it is promoted or rolled back."""
