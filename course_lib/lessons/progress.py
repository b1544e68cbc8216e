"""How far a learner is, and how to take that along.

Binder forgets files: download `course_progress.json` from the file browser before you
leave, and bring it back with `bring_back("path/to/course_progress.json")`.
"""

from course_lib.lessons.exercises import lessons
from course_lib.lessons.progress_file import QUIZ, solved
from course_lib.lessons.progress_file import bring_back as bring_back


def overview() -> str:
    """Return a table: each lesson, how many of its exercises are solved, and which.

    A quiz is no exercise: where it is done, the line says so beside the count.
    """
    done, lines = solved(), []
    for lesson, names in lessons().items():
        marks = [name for name in names if f"{lesson}.{name}" in done]
        quiz = ", quiz done" if f"{lesson}.{QUIZ}" in done else ""
        count = f"{len(marks)} of {len(names)}{quiz}"
        lines.append(f"{lesson:15}{count}  {', '.join(marks)}")
    return "\n".join(line.rstrip() for line in lines)
