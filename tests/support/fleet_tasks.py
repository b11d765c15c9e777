"""Tasks for workers that need no model."""

import os
import signal
import time
from dataclasses import dataclass

from wanvideo.errors import InputError
from wanvideo.fleet.messages import Made, Step


@dataclass(frozen=True)
class Toy:
    """do: what it does. key: as of a Task."""

    do: str
    key: str = "toy"
    rank: int = 0

    def for_rank(self, rank):
        return Toy(self.do, self.key, rank)

    def load(self, worker):
        return {"process": os.getpid(), "done": 0}

    def perform(self, models, worker):
        models["done"] += 1
        if self.do == "fail":
            raise InputError("This task is wrong. Mend it.")
        if self.do == "die" and self.rank == worker.place.world - 1:
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.do == "ask":
            return worker.ask("double", 21)
        while self.do == "break when stopped":
            worker.tell(Step(0, None, 0, 1))
            try:
                worker.stop_if_asked()
            except KeyboardInterrupt:
                raise ValueError("It broke. Start it again.") from None
            time.sleep(0.02)
        if self.do == "hang":
            worker.tell(Step(0, None, 0, 1))
            time.sleep(60)
        while self.do in ("wait", "die"):
            worker.tell(Step(0, None, 0, 1))
            worker.stop_if_asked()
            time.sleep(0.02)
        worker.tell(Made(self.rank))
        return models["process"], models["done"]
