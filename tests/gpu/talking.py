"""A process that is told what to do, a line at a time, and answers with a line."""

import subprocess
import threading

from runner import Fail, Run, stop


class Talking:
    def __init__(self, r, label, argv, env=None):
        self.r, self.label = r, label
        self.errors = open(r.scratch / f"{label.replace(' ', '-')}.err", "wb+")
        self.child = subprocess.Popen(
            [str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            env={**r.env, **(env or {})}, cwd=r.scratch, start_new_session=True, text=True,
        )

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def line(self, word, limit):
        """What follows `word` in the next line that begins with it."""
        timer = threading.Timer(limit, stop, [self.child])
        timer.start()
        try:
            for line in self.child.stdout:
                if line.startswith(word + " "):
                    return line.split()[1:]
                self.r.write(f"{self.label}: {line}")
        finally:
            timer.cancel()
        text = self.said()
        self.r.write(f"=== {self.label}\n{text}")
        self.r.show(Run(self.label, 1, text, 0, False), "no answer")
        raise Fail(f"{self.label}: no answer")

    def tell(self, line):
        try:
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            raise Fail(f"{self.label}: it has ended: {self.said()[-400:]}") from None

    def ask(self, word, line, limit=60):
        self.tell(line)
        return self.line(word, limit)

    def close(self):
        """The exit status of the process; it is ended when it does not end by itself."""
        try:
            self.child.stdin.close()
            code = self.child.wait(30)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            code = stop(self.child)
        self.r.write(f"=== {self.label}: status {code}\n{self.said()}")
        return code
