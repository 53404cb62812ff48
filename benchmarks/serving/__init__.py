"""How fast a served model answers and what it takes, in every form that it is served in."""
