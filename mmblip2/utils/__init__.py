"""What every part shares; nothing is imported here, so that the tools answer --help at once."""
