"""A suite in somebody else's trainer: thin, without any arithmetic of rewards or advantages."""
