"""`python -m examples` lists the examples (`--names`: by name only); with a name it runs one."""

from __future__ import annotations

import importlib
import sys

from examples import EXAMPLES
from minidl.errors import CorpusError, DeviceError, SerializationError


def main(arguments: list[str] | None = None) -> int:
    """Run the example that the first argument names with the rest; the process's exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("python -m examples NAME [--help | options]\n")
        for name, what in EXAMPLES.items():
            print(f"  {name:12} {what}")
        return 0
    if arguments[0] == "--names":
        print("\n".join(EXAMPLES))
        return 0
    name, *rest = arguments
    if name not in EXAMPLES:
        print(f"no example is called {name!r}; there are: {', '.join(EXAMPLES)}", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show Chinese gets \uXXXX
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return importlib.import_module(f"examples.{name}").main(rest)
    except (CorpusError, DeviceError, SerializationError) as error:  # a person can mend these
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while reading or measuring: training ends by itself, saved
        print("interrupted; what has been trained is saved: --resume goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
