"""Which training examples bent it: influence and the measures that test it."""
