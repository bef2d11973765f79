"""How the point got there: fine-tuning many seeds."""
