"""Training: what is learnt (recipes), and the loop that learns it."""
