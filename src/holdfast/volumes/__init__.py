"""Use cases: back up a directory or file, restore it, look into its snapshots."""
