"""How the loss bends: what layers see, and the factors made of it."""
