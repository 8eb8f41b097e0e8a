"""Published toy models and contract tests, for condec's own tests and for other packages."""
