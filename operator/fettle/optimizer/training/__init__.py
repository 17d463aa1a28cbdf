"""Training in PyTorch: what the steps that train have in common. Imported only where PyTorch is."""
