"""The training losses: ICG, the triplets it is compared with, and the total objective."""
