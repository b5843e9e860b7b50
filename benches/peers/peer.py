"""One peer, one case, in a process of its own: each brings modules with names like `utils`, and reads `sys.argv`.

    peer.py CACHE CASE plan                its plan: {"seconds", "own_s", "layout", ..} on stdout
    peer.py CACHE CASE judge LAYOUT.json   what it says of that layout: {"seconds", "fits"}
"""

import importlib
import json
import sys
from pathlib import Path

from cases import case_named


def main() -> None:
    cache, case, what, *rest = sys.argv[1:]
    case = case_named(case)
    peer = importlib.import_module(f"peer_{case.peer}")
    if what == "plan":
        answer = peer.plan(Path(cache), case)
    else:
        answer = peer.judge(Path(cache), case, json.loads(Path(rest[0]).read_text()))
    # Its numbers are numpy's. Some of its code prints from C++: the answer is the last line.
    print("\n" + json.dumps(answer, default=lambda number: number.item()))


main()
