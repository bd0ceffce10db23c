import threading
import time

from filelock import FileLock

from fractatlas.io import cache_lock


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
