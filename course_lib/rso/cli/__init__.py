"""`python -m course_lib rso`: read `command`, which parses options and runs a search.

`folders` writes a run's settings, checkpoint, reports and picture, `locks` keeps a
second run out of the folder, and `nets` builds the network that an option names.
"""
