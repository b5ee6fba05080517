"""``torchrun`` without its tracebacks: the processes have said themselves what was wrong."""

import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

try:
    main()
except SignalException as stopped:
    sys.exit(128 + int(stopped.sigval))
except ChildFailedError as error:
    _, failure = error.get_first_failure()
    sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
