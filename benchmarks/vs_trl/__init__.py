"""lit_align and TRL side by side: the same work through both real training loops, in one process, in turns.

``case`` says what is compared and ``plan`` how often, ``world`` makes the model and the texts, ``ours`` and ``theirs`` are the two loops,
``turns`` lets them take turns and times them, ``parts`` says where our time goes, ``agreement`` refuses to compare what is not the same
computation, ``floor`` is what the machine could do, ``memory`` measures peaks in processes of their own. ``results`` keeps the numbers,
``summary`` makes some of others, ``targets`` are what is wanted of them; ``rows``, ``report`` and ``picture`` make the page.
docs/performance.md says how to read it.
"""
