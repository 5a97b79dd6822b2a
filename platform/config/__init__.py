"""The experiment: all typed settings that determine a run, from YAML files and the command line.

Doors: ``experiment`` (the fields), ``loading`` (dictionaries and YAML), ``cli`` (command lines),
``sources`` (the data sets of a run)."""
