//! What the ledger, the gate and the roll are made of here: every operation may be preceded by any other thread's, and the clock
//! and the processes are the model's own.

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::Add;
pub use std::sync::atomic::Ordering;
use std::time::Duration;

pub use shuttle::sync::Mutex;
pub use std::hint::spin_loop;

/// The ledger's scale: small, so that many orders of few steps can be tried.
pub const DEVICES: usize = 2;
/// As above.
pub const SEATS: usize = 3;

std::thread_local! {
    /// What must hold at every moment of this test's executions.
    static ALWAYS: Cell<Option<fn()>> = const { Cell::new(None) };
    static DEAD: std::cell::RefCell<HashSet<u32>> = Default::default();
    static CLOCK: Cell<u32> = const { Cell::new(0) };
    static TICK: Cell<u32> = const { Cell::new(0) };
}

shuttle::thread_local! {
    static PID: Cell<u32> = Cell::new(1);
}

/// An execution begins: all are alive, and `always` is to hold. The clock advances so much whenever it is read.
pub fn begin(always: fn(), tick: u32) {
    DEAD.with(|d| d.borrow_mut().clear());
    CLOCK.set(0);
    TICK.set(tick);
    ALWAYS.set(Some(always));
}

/// An execution has ended: what comes now is outside.
pub fn end() {
    ALWAYS.set(None);
}

/// Another thread may come first.
fn switch() {
    // What is dropped in a panic goes on without the others.
    if let Some(always) = ALWAYS.get().filter(|_| !std::thread::panicking()) {
        always();
        shuttle::thread::sleep(Duration::ZERO);
        always();
    }
}

pub fn yield_now() {
    shuttle::thread::yield_now();
}

pub fn sleep(_: Duration) {
    shuttle::thread::yield_now();
}

/// Threads' fences are nothing where all operations are sequentially consistent.
pub fn fence_of_threads() {}

/// Nobody waits on a word in the model.
pub fn wake(_: &AtomicU32) {}

pub fn wait_on(_: &AtomicU32, _: u32, _: Duration) {
    shuttle::thread::yield_now();
}

/// A thread of a process.
pub fn process(pid: u32, run: impl FnOnce() + Send + 'static) -> shuttle::thread::JoinHandle<()> {
    shuttle::thread::spawn(move || {
        PID.with(|p| p.set(pid));
        run();
    })
}

/// Runs as another process for a while.
pub fn as_process<T>(pid: u32, run: impl FnOnce() -> T) -> T {
    let before = PID.with(|p| p.replace(pid));
    let result = run();
    PID.with(|p| p.set(before));
    result
}

pub fn process_id() -> u32 {
    // Outside of an execution the template is made.
    if ALWAYS.get().is_some() {
        PID.with(|p| p.get())
    } else {
        1
    }
}

pub fn kill(pid: u32) {
    DEAD.with(|d| d.borrow_mut().insert(pid));
}

/// When a process of the model was born, unless it is dead.
pub fn start_time(pid: u32) -> Option<u64> {
    switch();
    let dead = DEAD.with(|d| d.borrow().contains(&pid));
    (!dead).then(|| u64::from(pid) + 1000)
}

/// The model's clock.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub struct Instant(Duration);

impl Instant {
    pub fn now() -> Instant {
        CLOCK.set(CLOCK.get() + TICK.get());
        Instant(Duration::from_millis(CLOCK.get().into()))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0 + duration)
    }
}

macro_rules! atomics {
    ($($name:ident: $ty:ty;)*) => {$(
        /// An atomic that may live in a mapped file, as the real one.
        #[repr(transparent)]
        pub struct $name(std::sync::atomic::$name);

        impl $name {
            pub const fn new(value: $ty) -> Self {
                Self(std::sync::atomic::$name::new(value))
            }
            /// The value now, without giving others a turn: for what must hold at every moment.
            pub fn peek(&self) -> $ty {
                self.0.load(Ordering::SeqCst)
            }
            pub fn load(&self, order: Ordering) -> $ty {
                switch();
                self.0.load(order)
            }
            pub fn store(&self, value: $ty, order: Ordering) {
                switch();
                self.0.store(value, order);
            }
            pub fn fetch_add(&self, value: $ty, order: Ordering) -> $ty {
                switch();
                self.0.fetch_add(value, order)
            }
            pub fn fetch_sub(&self, value: $ty, order: Ordering) -> $ty {
                switch();
                self.0.fetch_sub(value, order)
            }
            pub fn fetch_max(&self, value: $ty, order: Ordering) -> $ty {
                switch();
                self.0.fetch_max(value, order)
            }
            pub fn fetch_min(&self, value: $ty, order: Ordering) -> $ty {
                switch();
                self.0.fetch_min(value, order)
            }
            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                f: impl FnMut($ty) -> Option<$ty>,
            ) -> Result<$ty, $ty> {
                switch();
                self.0.fetch_update(set, fetch, f)
            }
            pub fn compare_exchange(
                &self,
                old: $ty,
                new: $ty,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$ty, $ty> {
                switch();
                self.0.compare_exchange(old, new, success, failure)
            }
        }
    )*};
}

atomics! {
    AtomicU8: u8;
    AtomicU32: u32;
    AtomicU64: u64;
    AtomicUsize: usize;
}
