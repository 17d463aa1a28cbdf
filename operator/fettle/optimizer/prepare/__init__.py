"""The first stage: the source fetched and opened, its portable form, its signature proved, its items split."""
