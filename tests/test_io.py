import threading
import time

import pandas as pd
from filelock import FileLock

from fractatlas.io import cache_lock, write_csv


def test_a_process_that_waits_for_a_lock_logs_for_what(tmp_path, caplog):
    def hold() -> None:
        with FileLock(tmp_path / ".lock"):
            held.set()
            time.sleep(1.5)

    held = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with caplog.at_level("INFO"), cache_lock(tmp_path):
        holder.join(timeout=0.1)
        assert not holder.is_alive()
    assert caplog.messages == [f"waiting for another process that writes to {tmp_path}"]


def test_compressed_tables_are_equal_in_every_byte(tmp_path):
    table = pd.DataFrame({"name": ["ü", "a,b"], "value": [0.1, 1e-9]})
    files = [tmp_path / name for name in ("one.csv.gz", "two.csv.gz")]
    for file in files:
        write_csv(file, table)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes()[:2] == b"\x1f\x8b"
    pd.testing.assert_frame_equal(pd.read_csv(files[0]), table)
