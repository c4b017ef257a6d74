"""For whoever begins: a first recipe from a model and data, what a setting means, completion in the shell."""
