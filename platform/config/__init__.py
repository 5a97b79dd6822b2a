"""The experiment: everything that determines a run, typed, from YAML and the command line.

Doors: ``experiment`` (the fields), ``loading`` (dictionaries and YAML), ``cli`` (command lines)."""
