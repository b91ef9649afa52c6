//! What operations touch: each launch, copy and memset notes the addresses of owned memory that it names, in a ring of its
//! own thread. The steward reads the rings. Nothing here waits, locks or writes to a line that other threads write; only
//! when the steward rests, the next note wakes it.
//!
//! Notes are made only while something is placed outside VRAM, or recorded: until then an operation pays for the gate.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Mutex, PoisonError};

use greenboost_abi::CUfunction;

use super::args;
use super::chunk::GRAIN;
use super::gate::{self, Slot};
use super::staging::admit;
use crate::{driver, process};

/// What kind of operation made a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A kernel.
    Launch = 1,
    /// A copy or a memset: addresses alternate with bytes.
    Copy = 2,
    /// A graph.
    Graph = 3,
}

/// One bit for each grain of the address space that the driver hands out: whether an allocation of ours is there. Most of
/// it is never touched, and so costs address space only.
static OWNED: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
/// 2^47 bytes: user space of x86-64; addresses above are nobody's.
const WORDS: usize = (1 << 47) / GRAIN as usize / 64;

/// Whether this address is in a range of ours.
#[inline]
pub fn owned(address: u64) -> bool {
    let grain = (address / GRAIN) as usize;
    OWNED
        .get(grain / 64)
        .is_some_and(|word| word.load(Relaxed) >> (grain % 64) & 1 != 0)
}

/// A range is ours from now on, or no more; both are multiples of a grain.
pub fn own(base: u64, span: u64, ours: bool) {
    for grain in base / GRAIN..(base + span) / GRAIN {
        let Some(word) = OWNED.get(grain as usize / 64) else {
            return;
        };
        let bit = 1 << (grain % 64);
        match ours {
            true => word.fetch_or(bit, Relaxed),
            false => word.fetch_and(!bit, Relaxed),
        };
    }
}

/// Whether notes are made.
static NOTING: AtomicBool = AtomicBool::new(false);
/// Whether each note says when.
static TIMED: AtomicBool = AtomicBool::new(false);

/// Whether whoever reads the notes rests until there is one.
static RESTING: AtomicBool = AtomicBool::new(false);

/// Whoever reads rests from now on, and the next note is to wake it; or does so no more. A note that is made at this very
/// moment may not: the one after it does.
pub fn rest(on: bool) {
    RESTING.store(on, SeqCst);
}

#[cold]
fn wake() {
    if let Some(ledger) = process::ledger() {
        ledger.wake();
    }
}

/// Begins or ends making notes.
pub fn note(on: bool) {
    NOTING.store(on, SeqCst);
}

/// Whether a trace is made: then notes are made whatever happens.
pub fn recording() -> bool {
    TIMED.load(Relaxed)
}

/// Whether anybody has to know what operations name.
#[inline]
pub fn wanted() -> bool {
    noting() || admit::active()
}

/// Whether notes are made.
#[inline]
pub fn noting() -> bool {
    NOTING.load(Relaxed)
}

/// From now on each note says when it was made.
pub fn say_when() {
    TIMED.store(true, SeqCst);
}

/// Words in a ring: some thousand launches.
const RING: usize = 1 << 15;
/// Most words of one note.
const MOST: usize = 200;

const HEADER: u64 = 1 << 63;
const WITH_TIME: u64 = 1 << 62;

/// A thread's ring: written by the thread alone, read by the steward alone.
pub struct Notes {
    head: AtomicU64,
    tail: AtomicU64,
    words: [AtomicU64; RING],
}

/// Notes of one operation, being made.
struct Note<'a> {
    ring: &'a Notes,
    head: u64,
    at: u64,
    end: u64,
}

impl Notes {
    fn new() -> Box<Notes> {
        // SAFETY: atomics of zero are what zeroed memory is.
        unsafe { Box::new_zeroed().assume_init() }
    }

    fn begin(&self) -> Note<'_> {
        let head = self.head.load(Relaxed);
        let mut note = Note {
            ring: self,
            head,
            at: head + 1,
            end: self.tail.load(Acquire) + RING as u64,
        };
        if TIMED.load(Relaxed) {
            note.push(crate::telemetry::monotonic());
        }
        note
    }
}

impl Note<'_> {
    #[inline]
    fn push(&mut self, word: u64) {
        // What does not fit is not written; `finish` notices.
        if self.at < self.end {
            self.ring.words[self.at as usize % RING].store(word, Relaxed);
        }
        self.at += 1;
    }

    #[inline]
    fn finish(self, kind: Kind, who: u64) {
        let timed = TIMED.load(Relaxed);
        let words = self.at - self.head - 1;
        if words == 0 {
            return;
        }
        if self.at > self.end || words > MOST as u64 {
            return;
        }
        let header = HEADER
            | if timed { WITH_TIME } else { 0 }
            | (kind as u64) << 56
            | words << 48
            | who & ((1 << 48) - 1);
        self.ring.words[self.head as usize % RING].store(header, Relaxed);
        self.ring.head.store(self.at, Release);
        if RESTING.load(Relaxed) {
            wake();
        }
    }
}

fn ring(slot: &'static Slot) -> &'static Notes {
    let mut ring = slot.notes.load(Relaxed);
    if ring.is_null() {
        ring = Box::into_raw(Notes::new());
        slot.notes.store(ring, Release);
    }
    // SAFETY: rings are never freed, and only the thread that has the slot makes one.
    unsafe { &*ring }
}

/// A launch names what its arguments point to.
///
/// # Safety
/// `function`, `params` and `extra` are what the program launches with, and the driver has accepted them.
#[inline]
pub unsafe fn launched(function: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void) {
    if noting() {
        // SAFETY: the caller's promise.
        unsafe { note_launch(function, params, extra) }
    }
}

unsafe fn note_launch(function: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void) {
    // SAFETY: the driver has just launched it.
    let layout = unsafe { args::layout(function) };
    let (Some(slot), Some(layout)) = (gate::slot(), layout) else {
        return;
    };
    if recording() {
        // SAFETY: as above.
        unsafe { remember(function) };
    }
    let mut note = ring(slot).begin();
    // SAFETY: the caller's promise: they are good for this function.
    unsafe {
        layout.each(params, extra, |_, word| {
            if owned(word) {
                note.push(word);
            }
        });
    }
    note.finish(Kind::Launch, function as u64);
}

/// What functions are called, by handle: asked when they are launched, since they may be gone later.
static NAMES: Mutex<Option<HashMap<u64, String>>> = Mutex::new(None);

/// # Safety
/// A function that the program has just launched.
#[cold]
unsafe fn remember(function: CUfunction) {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    // SAFETY: the caller's promise.
    let ask = || unsafe { driver::function_name(function) }.unwrap_or_default();
    names.entry(function as u64).or_insert_with(ask);
}

/// What a function that was launched while a trace is made is called, as far as the driver tells (12.3).
pub fn name_of(function: u64) -> Option<String> {
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names
        .as_ref()?
        .get(&function)
        .filter(|n| !n.is_empty())
        .cloned()
}

/// A copy or memset names its operands: address and bytes of each.
#[inline]
pub fn copied(operands: &[(u64, u64)]) {
    admit::operands(operands);
    if noting() {
        note_copy(operands);
    }
}

fn note_copy(operands: &[(u64, u64)]) {
    let Some(slot) = gate::slot() else { return };
    let mut note = ring(slot).begin();
    for (address, bytes) in operands.iter().filter(|(a, b)| *b > 0 && owned(*a)) {
        note.push(*address);
        note.push(*bytes);
    }
    note.finish(Kind::Copy, 0);
}

/// A graph that is launched names what its nodes name.
pub fn graph(exec: u64, addresses: impl Iterator<Item = u64>) {
    if !noting() {
        return;
    }
    let Some(slot) = gate::slot() else { return };
    let ring = ring(slot);
    let mut note = ring.begin();
    let mut count = 0;
    for address in addresses {
        note.push(address);
        count += 1;
        if count == MOST - 2 {
            note.finish(Kind::Graph, exec);
            note = ring.begin();
            count = 0;
        }
    }
    note.finish(Kind::Graph, exec);
}

/// What one operation said.
pub struct Said<'a> {
    /// What it was.
    pub kind: Kind,
    /// Function or graph, its handle's low 48 bits.
    pub who: u64,
    /// When, `CLOCK_MONOTONIC` in nanoseconds; 0 where that is not noted.
    pub when: u64,
    /// Addresses; of copies each followed by its bytes.
    pub words: &'a [u64],
}

/// Whether there is anything to read.
pub fn unread() -> bool {
    gate::slots().any(|slot| {
        // SAFETY: rings are never freed.
        let ring = unsafe { slot.notes.load(Acquire).as_ref() };
        ring.is_some_and(|ring| ring.head.load(Acquire) != ring.tail.load(Relaxed))
    })
}

/// Reads all notes, thread by thread, and forgets them. An operation that finds no room for its note goes without.
///
/// Only one thread may read.
pub fn read(mut each: impl FnMut(usize, Said)) {
    let mut buffer = [0u64; 256];
    for (thread, slot) in gate::slots().enumerate() {
        // SAFETY: rings are never freed.
        let Some(ring) = (unsafe { slot.notes.load(Acquire).as_ref() }) else {
            continue;
        };
        let head = ring.head.load(Acquire);
        let mut at = ring.tail.load(Relaxed);
        while at < head {
            let word = |i: u64| ring.words[i as usize % RING].load(Relaxed);
            let header = word(at);
            let count = (header >> 48 & 0xff) as usize;
            for (i, to) in buffer[..count].iter_mut().enumerate() {
                *to = word(at + 1 + i as u64);
            }
            at += 1 + count as u64;
            ring.tail.store(at, Release);
            let kind = match header >> 56 & 0x3f {
                1 => Kind::Launch,
                2 => Kind::Copy,
                _ => Kind::Graph,
            };
            let (when, words) = match header & WITH_TIME {
                0 => (0, &buffer[..count]),
                _ => (buffer[0], &buffer[1..count]),
            };
            if words.is_empty() {
                continue;
            }
            each(
                thread,
                Said {
                    kind,
                    who: header & ((1 << 48) - 1),
                    when,
                    words,
                },
            );
        }
    }
}
