"""What the examples share: networks, run files and plots."""
