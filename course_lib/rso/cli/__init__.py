"""The command `python -m course_lib rso` and the folder of a run."""
