"""`fettle optimize`: a run on this machine, admission and Jobs included."""
