//! Captures and drains, kept apart.
//!
//! A drain announces itself before it looks for captures, and a capture before it looks for drains, so at least one sees
//! the other. A drain that sees a capture gives up. A capture that sees a drain waits until the drain is over, for a
//! bounded time: it holds no lock, and the drain may itself be waiting for work that waits for this thread. When that
//! time is up the drain's calls have long entered the driver.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::sync::{AtomicUsize, Instant, sleep};

/// How long the start of a capture waits for a drain that is about to call the driver.
pub const ENTRY: Duration = Duration::from_millis(10);

/// How many captures are open, and how many drains are under way.
pub struct Gate {
    captures: AtomicUsize,
    drains: AtomicUsize,
}

impl Gate {
    /// No captures, no drains.
    pub const fn new() -> Gate {
        Gate {
            captures: AtomicUsize::new(0),
            drains: AtomicUsize::new(0),
        }
    }

    /// A capture is about to begin.
    pub fn open(&self) {
        self.captures.fetch_add(1, SeqCst);
        let deadline = Instant::now() + ENTRY;
        while self.drains.load(SeqCst) != 0 && Instant::now() < deadline {
            sleep(Duration::from_micros(50));
        }
    }

    /// A capture has ended or did not begin.
    pub fn close(&self) {
        self.captures.fetch_sub(1, SeqCst);
    }

    /// Whether any capture is open.
    pub fn is_open(&self) -> bool {
        self.captures.load(SeqCst) != 0
    }

    /// Drains the device by `synchronize`; `None` when a capture is open.
    pub fn drain<T>(&self, synchronize: impl FnOnce() -> T) -> Option<T> {
        self.drains.fetch_add(1, SeqCst);
        let _under_way = UnderWay(self);
        (!self.is_open()).then(synchronize)
    }
}

/// Takes a drain off the count, also when it panics.
struct UnderWay<'a>(&'a Gate);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.drains.fetch_sub(1, SeqCst);
    }
}
