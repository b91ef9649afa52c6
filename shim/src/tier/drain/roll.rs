//! The roll of the program's contexts: those that draining must reach. None of them is made current once its destruction
//! has begun: the driver once accepted a destroyed context, and once crashed over it (measured).
//!
//! A drain enters a context, makes it current and leaves it, and only then waits in it: what is current already may be
//! destroyed meanwhile (measured: both calls return when the work is done). A destruction first says so, waits for those
//! that are entering, for a bounded time, and then calls the driver. A drain that meets a context which is being
//! destroyed waits for the end of that: the destruction waits for the context's work, as the drain would.

use std::sync::PoisonError;
use std::time::Duration;

use super::sync::{Instant, Mutex, sleep};

/// How long a destruction waits for drains that are just making the context current.
pub const ENTERING: Duration = Duration::from_millis(10);
const LOOK: Duration = Duration::from_micros(50);

struct Entry {
    context: usize,
    device: i32,
    /// References that `cuCtxDetach` takes away.
    uses: u32,
    /// Drains that are making it current.
    entering: u32,
    /// Its destruction has begun.
    ending: bool,
}

/// The contexts that the program made and their devices.
pub struct Roll(Mutex<Vec<Entry>>);

impl Roll {
    /// No contexts.
    pub const fn new() -> Roll {
        Roll(Mutex::new(Vec::new()))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<Entry>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn find<T>(&self, context: usize, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.with(|all| all.iter_mut().find(|e| e.context == context).map(f))
    }

    /// A context has been made.
    pub fn add(&self, context: usize, device: i32) {
        self.with(|all| {
            // One that is ending is another, whose handle has just become free.
            if !all.iter().any(|e| e.context == context && !e.ending) {
                all.push(Entry {
                    context,
                    device,
                    uses: 1,
                    entering: 0,
                    ending: false,
                });
            }
        });
    }

    /// A context is gone. Returns whether it was known.
    pub fn remove(&self, context: usize) -> bool {
        self.with(|all| {
            let before = all.len();
            all.retain(|e| e.context != context);
            all.len() != before
        })
    }

    /// Whether a context is known.
    pub fn has(&self, context: usize) -> bool {
        self.find(context, |_| ()).is_some()
    }

    /// The device of a context.
    pub fn device(&self, context: usize) -> Option<i32> {
        self.find(context, |e| e.device)
    }

    /// The contexts on a device, or on all of them.
    pub fn of(&self, device: Option<i32>) -> Vec<usize> {
        self.with(|all| {
            all.iter()
                .filter(|e| device.is_none_or(|d| d == e.device))
                .map(|e| e.context)
                .collect()
        })
    }

    /// `cuCtxAttach` has added a reference.
    pub fn attach(&self, context: usize) {
        self.find(context, |e| e.uses += 1);
    }

    /// Takes a reference away. Returns whether it is the last one: then it stays, and the context is to be destroyed.
    pub fn detach(&self, context: usize) -> bool {
        self.find(context, |e| {
            let last = e.uses == 1;
            e.uses -= u32::from(!last);
            last
        })
        .unwrap_or(false)
    }

    /// Makes a context current by `enter`, which must not wait for anybody. `None`: it is gone.
    pub fn enter<T>(&self, context: usize, enter: impl FnOnce() -> T) -> Option<T> {
        while self.find(context, |e| {
            e.entering += u32::from(!e.ending);
            e.ending
        })? {
            sleep(LOOK);
        }
        let _left = Left(self, context);
        Some(enter())
    }

    /// Destroys a context by `destroy`, which returns whether it did.
    pub fn end(&self, context: usize, destroy: impl FnOnce() -> bool) -> bool {
        let deadline = Instant::now() + ENTERING;
        self.find(context, |e| e.ending = true);
        while self
            .find(context, |e| e.entering > 0)
            .is_some_and(|busy| busy && Instant::now() < deadline)
        {
            sleep(LOOK);
        }
        let done = destroy();
        self.with(|all| {
            let at = all.iter().position(|e| e.context == context && e.ending);
            match at {
                Some(at) if done => drop(all.remove(at)),
                Some(at) => all[at].ending = false,
                None => {}
            }
        });
        done
    }
}

/// Counts a drain out, also when it panics.
struct Left<'a>(&'a Roll, usize);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        // After a destruction that did not wait to the end the entry may be another one.
        self.0
            .find(self.1, |e| e.entering = e.entering.saturating_sub(1));
    }
}
