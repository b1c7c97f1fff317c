"""The steps of ``icre retrain``, the promotion gate, and the registry of models in service."""
