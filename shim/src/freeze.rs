//! The end of all movement: a function was called, or may be, that names memory out of the shim's sight.
//!
//! Such functions are handed out behind stubs. A stub is two instructions and a jump: at its first call it sets
//! [`frozen`], waits until a move that has begun has ended, and jumps to the real function with every register, the
//! stack and the return address untouched; later calls go straight. It allocates nothing and takes no lock.
//!
//! What a stub cannot be put before: a function of which the shim has no row and to which the loader itself bound the
//! program, because it is linked to libcuda, and one that was looked up in another link namespace (`dlmopen`). The first
//! are found by looking through what the loaded objects want ([`look_at_links`]): to be linked to such a function freezes
//! as much as calling it. That is looked at when CUDA starts, and again before each move if objects were loaded since.
//! The second are not seen.
//!
//! A process that opens a device through which others may hold its pages freezes too: that is looked at before each move.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};

use greenboost_wire::record::Kind;

use crate::mediation::{self, Class};
use crate::{elf, process, telemetry};

/// Functions that can be watched; a driver of 2025 has a hundred that freeze. One more freezes when it is looked up.
const STUBS: usize = 256;

static FROZEN: AtomicU8 = AtomicU8::new(0);
/// Moves under way.
static MOVING: AtomicU32 = AtomicU32::new(0);

// One slot for each stub. The stubs read and write them by their addresses.
static CALLED: [AtomicU8; STUBS] = [const { AtomicU8::new(0) }; STUBS];
static REAL: [AtomicUsize; STUBS] = [const { AtomicUsize::new(0) }; STUBS];
static NAMES: [Name; STUBS] = [const { Name::new() }; STUBS];

/// Why it froze when no stub was called.
static CAUSE: AtomicU8 = AtomicU8::new(NONE);
static CAUSE_NAME: Name = Name::new();
const NONE: u8 = 0;
const LINKED: u8 = 1;
const CROWDED: u8 = 2;
const OPENED: u8 = 3;

/// Whether all movement has ended in this process, for good. Code that moves memory asks by [`Motion::begin`].
pub fn frozen() -> bool {
    FROZEN.load(SeqCst) != 0
}

/// Whether a function was called that the table of symbols does not know: it may do anything, to anything by its handle.
pub fn unknown_called() -> bool {
    let called = CALLED.iter().zip(&NAMES);
    let mut called = called.filter(|(called, _)| called.load(Acquire) != 0);
    frozen() && called.any(|(_, name)| mediation::class_of(name.get().as_bytes()).is_none())
}

/// A move under way: a function that freezes waits at its first call until it is dropped.
///
/// So a move must not wait for the program, and none may be begun by a thread on which one is under way.
pub struct Motion(());

impl Motion {
    /// `None` when nothing may move any more.
    pub fn begin() -> Option<Motion> {
        look_at_links();
        look_at_devices();
        MOVING.fetch_add(1, SeqCst);
        // Either this sees that it is frozen, or who freezes sees the move.
        let motion = Motion(());
        (!frozen()).then_some(motion)
    }
}

impl Drop for Motion {
    fn drop(&mut self) {
        MOVING.fetch_sub(1, SeqCst);
    }
}

/// Waits for a move under way: no lock may be held that it could need, the loader's least of all.
fn freeze(cause: u8, name: &Name) {
    if CAUSE
        .compare_exchange(NONE, u8::MAX, AcqRel, Relaxed)
        .is_ok()
    {
        CAUSE_NAME.copy(name);
        CAUSE.store(cause, Release);
    }
    FROZEN.fetch_or(1, SeqCst);
    while MOVING.load(SeqCst) != 0 {
        std::hint::spin_loop();
    }
}

/// The stub for a function; always the same for one address.
pub fn stub(real: usize, name: &CStr) -> usize {
    let Some((index, new)) = claim(&REAL, real) else {
        let told = Name::new();
        told.set(name);
        freeze(CROWDED, &told);
        return real;
    };
    if new {
        NAMES[index].set(name);
    }
    STUB[index] as usize
}

/// The slot of an address, and whether it has just become its own.
fn claim(slots: &[AtomicUsize], real: usize) -> Option<(usize, bool)> {
    slots.iter().enumerate().find_map(|(index, slot)| {
        match slot.compare_exchange(0, real, AcqRel, Acquire) {
            Ok(_) => Some((index, true)),
            Err(holder) => (holder == real).then_some((index, false)),
        }
    })
}

/// Freezes if a loaded object is linked to a function that freezes or that the shim does not know. Cheap when nothing
/// was loaded since the last look.
pub fn look_at_links() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let loads = elf::with(|_| true, |o| o.loads()).unwrap_or(0);
    if SEEN.swap(loads, AcqRel) == loads {
        return;
    }
    // Not frozen from inside: the loader shows its objects under a lock of its own.
    let found = Name::new();
    let look = |object: &elf::Object| {
        if !mediation::is_driver(object) {
            object.each_undefined(|name| {
                if found.is_empty() && mediation::is_suspect_of_driver(name) {
                    found.set(name);
                }
            });
        }
        false
    };
    elf::with(look, |_| ());
    if !found.is_empty() {
        freeze(LINKED, &found);
    }
}

/// Whether a kernel driver hands out the pages behind device memory to who opens this device: registering them there
/// passes no function of CUDA's. RDMA adapters, GDRCopy, GPUDirect Storage.
fn hands_out_pages(device: &[u8]) -> bool {
    let devices: [&[u8]; 3] = [b"/dev/infiniband/uverbs", b"/dev/gdrdrv", b"/dev/nvidia-fs"];
    devices.iter().any(|d| device.starts_with(d))
}

/// Such a device among the links of a directory, which is `/proc/self/fd`.
fn opened_in(descriptors: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(descriptors).ok()?;
    let mut links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.find(|link| hands_out_pages(link.as_os_str().as_bytes()))
}

/// Freezes if the process has such a device open. Some microseconds for each descriptor: a move takes milliseconds.
fn look_at_devices() {
    if frozen() {
        return;
    }
    if let Some(device) = opened_in(Path::new("/proc/self/fd")) {
        let name = Name::new();
        name.set_bytes(device.as_os_str().as_bytes());
        freeze(OPENED, &name);
    }
}

/// Whether [`announce`] may have something to tell.
#[inline(always)]
pub fn worth_a_look() -> bool {
    FROZEN.load(Relaxed) != 0
}

/// Tells the launcher, once, if it has happened. Called at the start of every intercepted call: not by the stub, which
/// is called in places where nothing may be done.
pub fn announce() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if FROZEN.load(Relaxed) == 0 || TOLD.load(Relaxed) || process::job().is_none() {
        return;
    }
    let called = || CALLED.iter().position(|c| c.load(Acquire) != 0);
    let (name, how) = match (CAUSE.load(Acquire), called()) {
        (LINKED, _) => (CAUSE_NAME.get(), "the program is linked to"),
        (CROWDED, _) => (CAUSE_NAME.get(), "too many to watch, the last was"),
        (OPENED, _) => (CAUSE_NAME.get(), "the program has opened"),
        (_, Some(index)) => (NAMES[index].get(), "the program called"),
        // The first call is just waiting for a move.
        _ => return,
    };
    if TOLD.swap(true, AcqRel) {
        return;
    }
    let why = match mediation::class_of(name.as_bytes()) {
        Some((Class::Freezing, reason)) => reason,
        _ if name.starts_with('/') => "another device may hold the pages",
        _ => "unknown to this version",
    };
    let text = format!("memory stays where it is: {how} {name} ({why})");
    telemetry::say(Kind::Frozen, None, [0; 3], &text);
}

/// A name of at most 64 bytes that is written and read without a lock. Two that write at once write the same.
struct Name([AtomicU64; 8]);

impl Name {
    const fn new() -> Name {
        Name([const { AtomicU64::new(0) }; 8])
    }

    fn set(&self, name: &CStr) {
        self.set_bytes(name.to_bytes());
    }

    fn set_bytes(&self, name: &[u8]) {
        for (word, bytes) in self.0.iter().zip(name.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(padded), Release);
        }
    }

    fn copy(&self, other: &Name) {
        for (to, from) in self.0.iter().zip(&other.0) {
            to.store(from.load(Acquire), Release);
        }
    }

    fn is_empty(&self) -> bool {
        self.0[0].load(Acquire) == 0
    }

    fn get(&self) -> String {
        let words = self.0.iter().map(|w| w.load(Acquire).to_le_bytes());
        let bytes: Vec<u8> = words.flatten().take_while(|&b| b != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// # Safety
/// Its slot is filled, and it is called as the real function is.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn entry<const INDEX: usize>() {
    core::arch::naked_asm!(
        "cmp byte ptr [rip + {called} + {index}], 0",
        "je 3f",
        "2:",
        "jmp qword ptr [rip + {real} + {offset}]",
        "3:",
        "lock or byte ptr [rip + {frozen}], 1", // a full barrier: before `MOVING` is read
        "4:",
        "cmp dword ptr [rip + {moving}], 0",
        "je 5f",
        "pause",
        "jmp 4b",
        "5:",
        "mov byte ptr [rip + {called} + {index}], 1",
        "jmp 2b",
        index = const INDEX,
        offset = const INDEX * 8,
        called = sym CALLED,
        real = sym REAL,
        frozen = sym FROZEN,
        moving = sym MOVING,
    )
}

/// Not tested: no such machine was at hand. `x16` and `x17` belong to whoever comes between a call and its function.
///
/// # Safety
/// Its slot is filled, and it is called as the real function is.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn entry<const INDEX: usize>() {
    core::arch::naked_asm!(
        "hint #34", // bti c
        "adrp x16, {called}",
        "add x16, x16, :lo12:{called}",
        "ldrb w17, [x16, #{index}]",
        "cbz w17, 3f",
        "2:",
        "adrp x16, {real}",
        "add x16, x16, :lo12:{real}",
        "ldr x16, [x16, #{offset}]",
        "br x16",
        "3:",
        "adrp x16, {frozen}",
        "add x16, x16, :lo12:{frozen}",
        "mov w17, #1",
        "strb w17, [x16]",
        "dmb ish",
        "adrp x16, {moving}",
        "add x16, x16, :lo12:{moving}",
        "4:",
        "ldar w17, [x16]",
        "cbz w17, 5f",
        "yield",
        "b 4b",
        "5:",
        "adrp x16, {called}",
        "add x16, x16, :lo12:{called}",
        "mov w17, #1",
        "strb w17, [x16, #{index}]",
        "b 2b",
        index = const INDEX,
        offset = const INDEX * 8,
        called = sym CALLED,
        real = sym REAL,
        frozen = sym FROZEN,
        moving = sym MOVING,
    )
}

type Entry = unsafe extern "C" fn();

/// The stubs, in the order of their slots.
static STUB: [Entry; STUBS] = {
    macro_rules! sixteen {
        ($table:ident $($row:literal)*) => {
            $(sixteen!(@ $table $row 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);)*
        };
        (@ $table:ident $row:literal $($column:literal)*) => {
            $($table[$row * 16 + $column] = entry::<{ $row * 16 + $column }>;)*
        };
    }
    let mut table: [Entry; STUBS] = [entry::<0>; STUBS];
    sixteen!(table 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32 as Count;
    use std::time::Duration;

    /// By value: on the stack.
    #[repr(C)]
    struct Large([f64; 3]);

    static CALLS: Count = Count::new(0);

    extern "C" fn many(
        a: u64,
        x: f64,
        b: u32,
        c: i8,
        y: f32,
        d: u64,
        e: u64,
        f: u64,
        g: u64,
        h: u16,
        z: Large,
    ) -> f64 {
        CALLS.fetch_add(1, SeqCst);
        assert_eq!((a, b, c, d, e, f), (1 << 63, 2, -3, 4, 5, 6));
        assert_eq!((g, h), (u64::MAX, 8));
        x + f64::from(y) + z.0[0] * z.0[2]
    }
    type Many = extern "C" fn(u64, f64, u32, i8, f32, u64, u64, u64, u64, u16, Large) -> f64;

    /// One test, because there is one state for the process.
    #[test]
    fn a_stub_freezes_and_passes_everything_on() {
        let real = many as *const () as usize;
        let address = stub(real, c"cuFutureMany");
        assert_ne!(address, real);
        assert_eq!(stub(real, c"cuFutureOther"), address, "one stub each");
        let index = STUB.iter().position(|s| *s as usize == address).unwrap();
        assert_eq!(NAMES[index].get(), "cuFutureMany");
        // SAFETY: the stub of a function of this type.
        let call = unsafe { std::mem::transmute::<usize, Many>(address) };
        let call = move || {
            call(
                1 << 63,
                0.5,
                2,
                -3,
                0.25,
                4,
                5,
                6,
                u64::MAX,
                8,
                Large([3.0, 0.0, 4.0]),
            )
        };

        assert!(!frozen());
        let motion = Motion::begin().expect("nothing was called yet");
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| assert_eq!(call(), 12.75));
            }
            while !frozen() {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(CALLS.load(SeqCst), 0, "it did not wait for the move");
            assert_eq!(CALLED[index].load(SeqCst), 0);
            drop(motion);
        });
        assert_eq!(CALLS.load(SeqCst), 2);
        assert_eq!(CALLED[index].load(SeqCst), 1);
        assert!(Motion::begin().is_none());
        assert_eq!(MOVING.load(SeqCst), 0);
        assert_eq!(call(), 12.75);
    }

    #[test]
    fn devices_that_hand_out_pages() {
        for name in ["/dev/infiniband/uverbs0", "/dev/gdrdrv", "/dev/nvidia-fs3"] {
            assert!(hands_out_pages(name.as_bytes()), "{name}");
        }
        for name in [
            "/dev/infiniband/rdma_cm",
            "/dev/nvidia0",
            "/dev/nvidia-uvm",
            "socket:[7]",
            "/x/dev/gdrdrv",
        ] {
            assert!(!hands_out_pages(name.as_bytes()), "{name}");
        }
        let descriptors = std::env::temp_dir().join(format!("gb-fd-{}", std::process::id()));
        std::fs::create_dir(&descriptors).unwrap();
        let link = |fd: &str, to| std::os::unix::fs::symlink(to, descriptors.join(fd)).unwrap();
        link("0", "/dev/null");
        assert_eq!(opened_in(&descriptors), None);
        link("7", "/dev/gdrdrv");
        let found = opened_in(&descriptors);
        std::fs::remove_dir_all(&descriptors).unwrap();
        assert_eq!(found, Some("/dev/gdrdrv".into()));
    }

    #[test]
    fn slots_run_out() {
        let slots = [const { AtomicUsize::new(0) }; 2];
        assert_eq!(claim(&slots, 10), Some((0, true)));
        assert_eq!(claim(&slots, 20), Some((1, true)));
        assert_eq!(claim(&slots, 10), Some((0, false)));
        assert_eq!(claim(&slots, 30), None);
        assert_eq!(claim(&slots, 20), Some((1, false)));
    }

    #[test]
    fn stubs_are_distinct() {
        let mut all: Vec<usize> = STUB.iter().map(|s| *s as usize).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), STUBS);
    }

    #[test]
    fn long_names_are_cut() {
        let name = Name::new();
        name.set(c"cuShort");
        assert_eq!(name.get(), "cuShort");
        let long = std::ffi::CString::new("x".repeat(80)).unwrap();
        let name = Name::new();
        name.set(&long);
        assert_eq!(name.get(), "x".repeat(64));
    }
}
