import sys

from benchmarks.vs_trl.command import main

sys.exit(main())
