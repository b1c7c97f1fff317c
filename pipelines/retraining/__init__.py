"""The steps of ``icre retrain``: what is new, a challenger, the comparison, the promotion, and what is told of it."""
