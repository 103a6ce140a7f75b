"""Images of a blend, and the record that repeats them."""
