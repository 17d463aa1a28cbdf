"""An optimization run, decided: which tasks exist next, which candidate is published."""
