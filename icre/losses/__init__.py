"""The training losses: ICG, the triplet losses for comparison, and the total objective."""
