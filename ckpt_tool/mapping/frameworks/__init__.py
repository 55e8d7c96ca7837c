"""Names that training frameworks put around a model, or beside it."""
