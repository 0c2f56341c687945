"""A release and a GPU, completely resolved."""
