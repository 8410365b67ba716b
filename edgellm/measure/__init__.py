"""How fast a model runs, where its time goes, and what this machine can do at most."""
