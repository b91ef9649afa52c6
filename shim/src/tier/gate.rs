//! The gate: the point that every device operation passes before it reaches the driver, and that keeps all of them out
//! while memory moves.
//!
//! Passing costs a store and a load of the thread's own. Whoever closes waits until all are out, for a bounded time; a
//! thread that waits too long opens again, unless memory is moving already, which nothing that the program does can hold
//! up. So waiting here is bounded, holds no lock, and depends on no helper thread.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use self::doors::{Closing, Doors, OPEN};
use crate::telemetry::monotonic;

mod doors;

mod sync {
    pub use std::sync::atomic::{AtomicU32, Ordering};

    /// The thread's side of the fence between its slot and the state.
    #[inline(always)]
    pub fn fence_of_threads() {
        if super::FENCED.load(Ordering::Relaxed) {
            std::sync::atomic::fence(Ordering::SeqCst);
        } else {
            std::sync::atomic::compiler_fence(Ordering::SeqCst);
        }
    }
}

/// How long a call waits beyond the time that the closer has given itself, before it opens the gate again.
const GRACE: Duration = Duration::from_millis(10);

static DOORS: Doors = Doors::new();

/// Whether threads fence for themselves, because the kernel cannot do it for them.
static FENCED: AtomicBool = AtomicBool::new(true);

/// When whoever closes will have given up by itself, nanoseconds of the monotonic clock.
static DEADLINE: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds that calls have waited here.
static WAITED: AtomicU64 = AtomicU64::new(0);

/// A thread's own place. Never freed: taken over by the next thread.
#[repr(align(128))]
pub struct Slot {
    inside: AtomicU32,
    taken: AtomicBool,
    next: AtomicPtr<Slot>,
    /// What the thread has to say of what it launched; see [`super::access`].
    pub notes: AtomicPtr<super::access::Notes>,
}

static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(null_mut());

/// Calls under way of threads that have no slot any more, because they are being torn down.
static STRAYS: AtomicU32 = AtomicU32::new(0);

/// Gives the slot back when the thread ends.
struct Tenant(Cell<*const Slot>);

impl Drop for Tenant {
    fn drop(&mut self) {
        // SAFETY: slots are never freed.
        if let Some(slot) = unsafe { self.0.get().as_ref() } {
            let _ = MINE.try_with(|mine| mine.set(std::ptr::null()));
            slot.taken.store(false, Release);
        }
    }
}

thread_local! {
    // Constant and without a destructor: a load, also while the thread is being torn down.
    static MINE: Cell<*const Slot> = const { Cell::new(std::ptr::null()) };
    static TENANT: Tenant = const { Tenant(Cell::new(std::ptr::null())) };
    /// This thread has shut the gate: what it calls itself passes.
    static SHUT_HERE: Cell<bool> = const { Cell::new(false) };
}

/// This thread's slot; `None` while it is being torn down.
#[inline(always)]
pub fn slot() -> Option<&'static Slot> {
    // SAFETY: slots are never freed.
    let mine = unsafe { MINE.with(Cell::get).as_ref() };
    mine.or_else(claim)
}

#[cold]
fn claim() -> Option<&'static Slot> {
    TENANT
        .try_with(|tenant| {
            let slot = slots()
                .find(|s| !s.taken.load(Relaxed) && !s.taken.swap(true, AcqRel))
                .unwrap_or_else(new_slot);
            tenant.0.set(slot);
            MINE.with(|mine| mine.set(slot));
            slot
        })
        .ok()
}

fn new_slot() -> &'static Slot {
    let slot: &'static Slot = Box::leak(Box::new(Slot {
        inside: AtomicU32::new(0),
        taken: AtomicBool::new(true),
        next: AtomicPtr::new(null_mut()),
        notes: AtomicPtr::new(null_mut()),
    }));
    let pointer: *mut Slot = std::ptr::from_ref(slot).cast_mut();
    let mut head = SLOTS.load(Acquire);
    loop {
        slot.next.store(head, Relaxed);
        match SLOTS.compare_exchange_weak(head, pointer, AcqRel, Acquire) {
            Ok(_) => return slot,
            Err(now) => head = now,
        }
    }
}

/// The slots of all threads, living and gone.
pub fn slots() -> impl Iterator<Item = &'static Slot> {
    // SAFETY: slots are never freed, and a slot is complete before it is in the list.
    let mut at = unsafe { SLOTS.load(Acquire).as_ref() };
    std::iter::from_fn(move || {
        let slot = at?;
        // SAFETY: as above.
        at = unsafe { slot.next.load(Acquire).as_ref() };
        Some(slot)
    })
}

/// Held by a call from before it reaches the driver until it is back.
pub struct Pass(Way);

enum Way {
    Slot(&'static Slot),
    Stray,
    /// The thread is inside already.
    Nested,
}

/// Passes the gate; waits while it is closed.
#[inline(always)]
pub fn pass() -> Pass {
    let Some(slot) = slot() else { return stray() };
    if slot.inside.load(Relaxed) != 0 {
        return Pass(Way::Nested);
    }
    while !DOORS.enter(&slot.inside) {
        if SHUT_HERE.get() {
            return Pass(Way::Nested);
        }
        wait();
    }
    Pass(Way::Slot(slot))
}

#[cold]
fn stray() -> Pass {
    loop {
        STRAYS.fetch_add(1, SeqCst);
        if DOORS.state.load(SeqCst) == OPEN {
            return Pass(Way::Stray);
        }
        STRAYS.fetch_sub(1, SeqCst);
        if SHUT_HERE.get() {
            return Pass(Way::Nested);
        }
        wait();
    }
}

impl Drop for Pass {
    #[inline(always)]
    fn drop(&mut self) {
        match self.0 {
            Way::Slot(slot) => DOORS.leave(&slot.inside),
            Way::Stray => {
                STRAYS.fetch_sub(1, SeqCst);
            }
            Way::Nested => {}
        }
    }
}

#[cold]
fn wait() {
    let since = Instant::now();
    loop {
        let state = DOORS.state.load(SeqCst);
        if state == OPEN {
            break;
        }
        let end = DEADLINE.load(SeqCst) + GRACE.as_nanos() as u64;
        let left = Duration::from_nanos(end.saturating_sub(monotonic()));
        if left.is_zero() && DOORS.give_up(state) {
            futex::wake_all(&DOORS.state);
            break;
        }
        futex::wait(&DOORS.state, state, left.max(Duration::from_millis(1)));
    }
    WAITED.fetch_add(since.elapsed().as_nanos() as u64, Relaxed);
}

/// Takes the time that calls have waited here since it was last asked, nanoseconds.
pub fn take_waited() -> u64 {
    WAITED.swap(0, Relaxed)
}

/// Nobody is inside, and whoever comes waits; but not for long: see [`Closed::shut`].
pub struct Closed(Closing);

/// Nobody is inside and nobody comes in, whatever happens, but the thread that has shut it.
pub struct Shut(PhantomData<*const ()>);

/// Closes the gate and waits until all are out. `None`: not in time, or another thread has closed it.
///
/// The calling thread must be outside itself.
pub fn close(patience: Duration) -> Option<Closed> {
    prepare();
    let deadline = Instant::now() + patience;
    if DOORS.state.load(SeqCst) == OPEN {
        DEADLINE.store(monotonic() + patience.as_nanos() as u64, SeqCst);
    }
    let closed = Closed(DOORS.close()?);
    if FENCED.load(SeqCst) {
        std::sync::atomic::fence(SeqCst);
    } else {
        membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    }
    let all_out = || STRAYS.load(SeqCst) == 0 && slots().all(|slot| slot.inside.load(Acquire) == 0);
    let mut turns = 0;
    while !all_out() {
        if Instant::now() >= deadline || !DOORS.is_closed_by(closed.0) {
            return None;
        }
        turns += 1;
        match turns {
            0..50 => std::hint::spin_loop(),
            _ => std::thread::sleep(Duration::from_micros(20)),
        }
    }
    Some(closed)
}

impl Closed {
    /// Makes sure that it stays closed until memory has moved. `None`: a call had to wait too long, and it is open again.
    pub fn shut(self) -> Option<Shut> {
        let shut = DOORS.shut(self.0);
        std::mem::forget(self);
        SHUT_HERE.set(shut);
        shut.then(|| Shut(PhantomData))
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        if DOORS.reopen(self.0) {
            futex::wake_all(&DOORS.state);
        }
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        SHUT_HERE.set(false);
        DOORS.open();
        futex::wake_all(&DOORS.state);
    }
}

/// Asks the kernel to fence for the program's threads from now on. Until it agrees they do so themselves.
pub fn prepare() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) {
            FENCED.store(false, SeqCst);
        }
    });
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: a plain system call; a kernel that does not know it refuses.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Waiting on a word.
pub mod futex {
    use super::*;

    /// Sleeps while the word has this value, at most so long; may return early.
    pub fn wait(word: &AtomicU32, value: u32, most: Duration) {
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let most = libc::timespec {
            tv_sec: most.as_secs() as libc::time_t,
            tv_nsec: most.subsec_nanos().into(),
        };
        // SAFETY: a word that lives on, and a time that is read at once.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                operation,
                value,
                &raw const most,
            )
        };
    }

    /// Wakes all who sleep on the word.
    pub fn wake_all(word: &AtomicU32) {
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: a word that lives on.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, i32::MAX) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because there is one gate.
    #[test]
    fn nobody_passes_while_it_is_shut() {
        const LONG: Duration = Duration::from_secs(10);
        // Somebody is inside: it does not close.
        let held = pass();
        assert!(matches!(pass().0, Way::Nested));
        std::thread::scope(|s| {
            let closer = s.spawn(|| close(Duration::from_millis(5)).is_none());
            assert!(closer.join().unwrap(), "closed around a call");
        });
        drop(held);

        // Nobody comes in while it is shut, however long that takes.
        let shut = close(Duration::ZERO)
            .and_then(Closed::shut)
            .expect("nobody inside");
        assert!(close(LONG).is_none(), "closed twice");
        // Whoever has shut it comes by.
        drop(pass());
        let entered = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let _pass = pass();
                entered.store(true, SeqCst);
            });
            std::thread::sleep(5 * GRACE);
            assert!(!entered.load(SeqCst));
            drop(shut);
        });
        assert!(entered.load(SeqCst));
        assert!(take_waited() > 0);

        // While it is only closing, whoever waits too long opens it.
        let closed = close(Duration::ZERO).expect("nobody inside");
        std::thread::scope(|s| {
            s.spawn(|| drop(pass()));
        });
        assert!(closed.shut().is_none());
        drop(pass());

        // Slots of threads that ended serve others.
        let count = slots().count();
        for _ in 0..10 {
            std::thread::spawn(|| drop(pass())).join().unwrap();
        }
        assert!(slots().count() <= count + 1);
    }
}
