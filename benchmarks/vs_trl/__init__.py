"""lit_align and TRL side by side: the same work through both real training loops, in one process, in turns.

``case`` says what is compared, ``world`` makes the model and the texts, ``ours`` and ``theirs`` are the two loops, ``turns`` lets them
take turns and times them, ``agreement`` refuses to compare what is not the same computation, ``floor`` is what the machine could do,
``memory`` measures peaks in processes of their own, ``summary`` and ``report`` make numbers and pages of it. docs/performance.md says how
to read them.
"""
