"""Would the tests notice?  Seeded mutants of the product, one at a time, against its tests.

``python -m tests.mutate --sample 60 --seed N`` draws mutants of the four packages (`sampling`),
applies each to a throw-away copy of the checkout (`copies`), runs the test files nearest to the
mutated line (`imports`, `users`, `nearness`) and prints who killed it, or that it survived
(`table`).

- The same seed on the same sources draws the same mutants, a larger sample those of the smaller
  one first.  The strata take turns: the four packages and, as a fifth, functions that numba
  compiles.
- Test files run nearest first: those that name the mutated function, also through a package's face
  (``__init__.pyi``) or through others, then those that import its module and its importers;
  ``unit`` before ``machine`` before ``cluster`` before ``long``; the representative runs of
  ``tests/guard.py`` behind the first four.  The markers are those of README's
  long run: everything but ``soak``; one process each, whatever pyproject says.
- ``--seconds`` bounds what one mutant may cost: files run as long as their times on the unmutated
  copy (measured once, `baseline`) add up to less.  A file's ``long`` tests run apart, after the
  quick ones of the next six files.  What alone costs more is not run.  The third file that is too
  long for what is left ends the search; the table counts the files left out.  Tests that fail
  without a mutant are left out as well.
- A test file that takes several times as long as without the mutant hangs: killed by timeout.
- Mutants judged equivalent stand in ``equivalent.json`` with the reason; they are listed, not run
  and not counted.
- ``--place FILE:LINE[:COLUMN]`` runs every mutant of one place instead of a sample, also those
  judged equivalent.
- ``--keep DIR`` keeps the copies, numba's compiled functions and the times for the next call on
  the same sources: the first run of every test file compiles for minutes.  One call at a time.

The exit code is 0 however many survive, 2 if the arguments are wrong.
"""
