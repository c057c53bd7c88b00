"""`Annotated` recordings -> a prepared data set, and what is read from it."""
