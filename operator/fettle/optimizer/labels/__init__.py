"""What labels mean: `readings` decides it once from all of them, `reader` then reads each."""
