//! The doors of the gate: who may pass, and when all are out. Without threads, clocks or a driver: the model
//! (`shim/tests/model`) compiles this file a second time and tries every order of its steps.
//!
//! A thread that passes says so before it looks at the state, and whoever closes changes the state before it looks who
//! is inside, so at least one sees the other. The thread's side is the common one and must cost nothing: its fence is
//! left to whoever closes where the kernel can do that (`membarrier`).

use super::sync::{AtomicU32, Ordering::*, fence_of_threads};

/// Everybody passes.
pub const OPEN: u32 = 0;
/// Nobody new passes; whoever has waited too long opens again. The other bits tell this closing from all others, so that
/// who was overruled cannot take the next one for its own.
const CLOSING: u32 = 1;
/// Nobody is inside, and memory moves: it cannot be opened but by who shut it.
const SHUT: u32 = 2;
const ONE: u32 = 4;

/// The state of the gate.
pub struct Doors {
    /// Also the word that waiting threads sleep on.
    pub state: AtomicU32,
    closings: AtomicU32,
}

/// A closing, to whoever made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing(u32);

impl Doors {
    /// Open.
    pub const fn new() -> Doors {
        Doors {
            state: AtomicU32::new(OPEN),
            closings: AtomicU32::new(0),
        }
    }

    /// A thread passes. `false`: it does not, and must wait.
    #[inline(always)]
    pub fn enter(&self, inside: &AtomicU32) -> bool {
        inside.store(1, Relaxed);
        fence_of_threads();
        if self.state.load(Acquire) == OPEN {
            return true;
        }
        inside.store(0, Release);
        false
    }

    /// The thread is out again.
    #[inline(always)]
    pub fn leave(&self, inside: &AtomicU32) {
        inside.store(0, Release);
    }

    /// Lets nobody new in. `None`: somebody else has closed it. The caller then makes all threads see it (a fence on both
    /// sides) before it looks who is inside.
    pub fn close(&self) -> Option<Closing> {
        let number = self.closings.fetch_add(1, SeqCst).wrapping_add(1);
        let closing = number.wrapping_mul(ONE) | CLOSING;
        self.state
            .compare_exchange(OPEN, closing, SeqCst, SeqCst)
            .ok()
            .map(|_| Closing(closing))
    }

    /// Whether it is still closed by this.
    pub fn is_closed_by(&self, closing: Closing) -> bool {
        self.state.load(SeqCst) == closing.0
    }

    /// From closing to shut: memory may move now. `false`: a thread that waited too long has opened it.
    pub fn shut(&self, Closing(closing): Closing) -> bool {
        let shut = closing ^ CLOSING | SHUT;
        self.state
            .compare_exchange(closing, shut, SeqCst, SeqCst)
            .is_ok()
    }

    /// Opens what is only closing, by who closed it or by a thread that has waited too long and saw this state.
    pub fn give_up(&self, seen: u32) -> bool {
        seen & CLOSING != 0
            && self
                .state
                .compare_exchange(seen, OPEN, SeqCst, SeqCst)
                .is_ok()
    }

    /// The same, by who closed it.
    pub fn reopen(&self, Closing(closing): Closing) -> bool {
        self.give_up(closing)
    }

    /// Opens what was shut, by who shut it.
    pub fn open(&self) {
        self.state.store(OPEN, SeqCst);
    }
}
