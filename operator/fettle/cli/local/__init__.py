"""`fettle optimize`: a run on this machine, including admission and the work of the Jobs."""
