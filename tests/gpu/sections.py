"""What the Python programs with several sections share: digests, a ballast, one RESULT line."""

import hashlib
import json
import sys
import time
import traceback


class Unsupported(Exception):
    """This machine or library cannot do it, and why."""


def run(table, wanted, **more):
    """Runs the sections by name, one after another; `more` goes into the result.

    A section takes a digest to update and may raise Unsupported. Its wrong results are exceptions.
    """
    digests, skipped, problems, seconds = {}, {}, [], {}
    for name, section in table.items():
        if wanted and name not in wanted:
            continue
        digest, begin = hashlib.sha256(), time.perf_counter()
        try:
            section(digest)
        except Unsupported as e:
            skipped[name] = str(e)
            print(f"SKIP {name}: {e}", flush=True)
            continue
        except Exception as e:  # the others are still worth running
            traceback.print_exc()
            problems.append(f"{name}: {type(e).__name__}: {str(e)[:300]}")
            continue
        digests[name] = digest.hexdigest()[:16]
        seconds[name] = round(time.perf_counter() - begin, 2)
        print(f"DIGEST {name} {digests[name]} ({seconds[name]} s)", flush=True)
    print("RESULT " + json.dumps(
        {"ok": not problems, "digests": digests, "skipped": skipped, "problems": problems, "section_s": seconds, **more}))
    sys.stdout.flush()
    sys.stderr.flush()
    return 1 if problems else 0
