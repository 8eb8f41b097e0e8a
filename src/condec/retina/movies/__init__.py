"""Movies and recorded rates as data: clips are views of one movie."""
