"""A user's program for the lifecycle tests: `program.py ENDING DEVICE COMMANDS SPARES`.

The children's commands, and the names of those that get a spare, are JSON.

It starts an engine, prints its processes and runtime directory in one line of JSON, and goes on as ENDING says.
"""

import json
import os
import sys
import time

import zipage.supervisor as supervisor_module
from zipage.config import EngineConfig
from zipage.supervisor import Supervisor


def main() -> None:
    """Run the engine to the ending that was asked for."""
    ending, device = sys.argv[1:3]
    commands, spares = (json.loads(argument) for argument in sys.argv[3:])
    supervisor_module.gpu_present = lambda _environment: True
    print("starting", flush=True)
    try:
        supervisor = Supervisor.start(EngineConfig(model="m", device=device), commands, spares)
        forked = _fork(ending)
        engine = {"processes": supervisor.processes, "runtime_dir": str(supervisor.runtime_dir), "forked": forked}
        print(json.dumps(engine), flush=True)
        if ending in ("wait", "fork_and_wait"):
            time.sleep(1000)
        elif ending == "fork_and_shutdown":
            supervisor.shutdown(grace=60)
        elif ending == "fork_and_check":
            os.waitpid(forked, 0)
            # The lifeline would have been cut by then, and the children ended soon after.
            print(json.dumps([supervisor.failed.wait(0.5), supervisor.runtime_dir.exists()]), flush=True)
        elif ending == "exit_at_once":
            os._exit(0)
    except KeyboardInterrupt:
        print("interrupted", flush=True)


def _fork(ending: str) -> int:
    """Fork a process that keeps every descriptor of this one, except where it is to end as Python programs end."""
    if not ending.startswith("fork"):
        return 0
    forked = os.fork()
    if forked == 0:
        if ending == "fork_and_check":
            sys.exit(0)
        time.sleep(1000)
    return forked


if __name__ == "__main__":
    main()
