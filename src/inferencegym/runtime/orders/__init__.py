"""Orders of the waiting queue, one family a file; `runtime.queues` makes one by name and changes one for another while requests wait."""
