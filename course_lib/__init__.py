"""The working code behind the course; each lesson's module bears its name.

There are no re-exports: `from course_lib.regularization import penalty` tells the
reader where to read.
"""

__version__ = "0.1.0"
