//! The arguments of kernels: what a launch names.
//!
//! The driver tells where each parameter of a kernel lies (`cuFuncGetParamInfo`, `cuKernelGetParamInfo`, driver 12.4). It
//! is asked once for each function; after that finding the layout is a look into a table that is only ever read: no lock,
//! no allocation, no line that threads write. Never more is read than the parameters that there are (PITFALLS 30).

use std::collections::HashSet;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};
use std::sync::{Mutex, PoisonError};

use greenboost_abi::*;

use crate::driver;

/// A word of a parameter that may hold an address: eight bytes, aligned in the device's layout as an address must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word {
    /// The parameter that it is in.
    parameter: u32,
    /// Where in the parameter, bytes.
    inside: u32,
    /// Where in the buffer of all parameters, bytes.
    offset: u32,
}

/// Where a kernel's parameters may hold addresses.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    words: Box<[Word]>,
}

impl Layout {
    /// Of parameters by offset and size, bytes.
    fn new(parameters: &[(usize, usize)]) -> Layout {
        let words = parameters
            .iter()
            .enumerate()
            .flat_map(|(parameter, &(offset, size))| {
                let first = offset.next_multiple_of(8) - offset;
                (first..)
                    .step_by(8)
                    .take_while(move |inside| inside + 8 <= size)
                    .map(move |inside| Word {
                        parameter: parameter as u32,
                        inside: inside as u32,
                        offset: (offset + inside) as u32,
                    })
            })
            .collect();
        Layout { words }
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether no parameter can hold an address.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Gives the number (below [`Layout::len`]) and the value of each word of a launch's arguments: those of
    /// `kernelParams`, or of the buffer that `extra` names if there are none.
    ///
    /// # Safety
    /// The arguments are good for a launch of the function that the layout is of.
    pub unsafe fn each(
        &self,
        parameters: *const *mut c_void,
        extra: *const *mut c_void,
        mut each: impl FnMut(usize, u64),
    ) {
        if self.words.is_empty() {
            return;
        }
        if !parameters.is_null() {
            for (i, word) in self.words.iter().enumerate() {
                // SAFETY: there is a pointer for each parameter, and what it points to has the parameter's size.
                unsafe {
                    let at = *parameters.add(word.parameter as usize);
                    if !at.is_null() {
                        each(
                            i,
                            at.byte_add(word.inside as usize)
                                .cast::<u64>()
                                .read_unaligned(),
                        );
                    }
                }
            }
        } else if !extra.is_null() {
            // SAFETY: the caller's promise.
            let (buffer, size) = unsafe { packed(extra) };
            let whole = |w: &&Word| w.offset as usize + 8 <= size;
            for (i, word) in self.words.iter().take_while(whole).enumerate() {
                // SAFETY: inside the buffer.
                let value = unsafe {
                    buffer
                        .byte_add(word.offset as usize)
                        .cast::<u64>()
                        .read_unaligned()
                };
                each(i, value);
            }
        }
    }
}

/// The buffer that `extra` names, and its bytes; none of either when it names no buffer.
///
/// # Safety
/// A list of keys and values that ends with the end key.
unsafe fn packed(extra: *const *mut c_void) -> (*const c_void, usize) {
    let (mut buffer, mut size) = (ptr::null::<c_void>(), 0);
    let mut at = extra;
    // Each key comes once; a list that does not end soon is none.
    for _ in 0..4 {
        // SAFETY: the list goes on until the end key; the size is pointed to.
        unsafe {
            match *at as usize {
                CU_LAUNCH_PARAM_BUFFER_POINTER => buffer = *at.add(1),
                CU_LAUNCH_PARAM_BUFFER_SIZE if !(*at.add(1)).is_null() => {
                    size = (*at.add(1)).cast::<usize>().read_unaligned();
                }
                _ => break,
            }
            at = at.add(2);
        }
    }
    if buffer.is_null() {
        (buffer, 0)
    } else {
        (buffer, size)
    }
}

/// Slots of the first table; each further one has four times as many.
const FIRST: usize = 1024;
/// Slots that a function may be in, side by side.
const NEAR: usize = 8;

/// A function that was asked about. Once taken a slot stays its handle's.
struct Slot {
    /// `CUfunction` or `CUkernel`; 0 while free.
    function: AtomicUsize,
    /// Null until it is known, or after [`forget`]; [`UNKNOWN`] if the driver does not tell.
    layout: AtomicPtr<Layout>,
}

/// Functions by handle: open addressing, insertions only. What finds no place goes on to the next table.
struct Table {
    slots: Box<[Slot]>,
    next: AtomicPtr<Table>,
}

/// The first table; never freed.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());

/// What stands for a layout that the driver does not tell; the address of none.
const UNKNOWN: *mut Layout = ptr::dangling_mut();

/// The table behind a link, made if there is none.
fn table(link: &AtomicPtr<Table>, size: usize) -> &'static Table {
    let mut there = link.load(Acquire);
    if there.is_null() {
        let free = |_| Slot {
            function: AtomicUsize::new(0),
            layout: AtomicPtr::new(ptr::null_mut()),
        };
        let new = Box::into_raw(Box::new(Table {
            slots: (0..size).map(free).collect(),
            next: AtomicPtr::new(ptr::null_mut()),
        }));
        there = match link.compare_exchange(ptr::null_mut(), new, AcqRel, Acquire) {
            Ok(_) => new,
            Err(other) => {
                // SAFETY: just made, and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
                other
            }
        };
    }
    // SAFETY: a table that is linked is never freed.
    unsafe { &*there }
}

/// The slots of a table that a function may be in.
fn near(table: &Table, function: usize) -> impl Iterator<Item = &Slot> {
    let mixed = function.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
    let slots = &table.slots;
    (0..NEAR).map(move |i| &slots[(mixed + i) & (slots.len() - 1)])
}

/// The slot of a function.
fn slot(function: usize) -> &'static Slot {
    let mut tables = (&TABLE, FIRST);
    loop {
        let here = table(tables.0, tables.1);
        for slot in near(here, function) {
            let holder = match slot.function.load(Acquire) {
                0 => slot
                    .function
                    .compare_exchange(0, function, AcqRel, Acquire)
                    .err(),
                holder => Some(holder),
            };
            if holder.is_none_or(|h| h == function) {
                return slot;
            }
        }
        tables = (&here.next, tables.1 * 4);
    }
}

/// Where the parameters of a function lie: a `CUfunction`, or a `CUkernel` in its place. `None`: the driver does not
/// tell (before 12.4).
///
/// # Safety
/// The function is one that can be launched now.
pub unsafe fn layout(function: *mut c_void) -> Option<&'static Layout> {
    if function.is_null() {
        return None;
    }
    let slot = slot(function as usize);
    let mut known = slot.layout.load(Acquire);
    if known.is_null() {
        // SAFETY: the caller's promise.
        known = unsafe { ask(function) };
        slot.layout.store(known, Release);
    }
    // SAFETY: layouts are never freed.
    (known != UNKNOWN).then(|| unsafe { &*known })
}

/// Forgets all functions: to be called before code is unloaded, since its handles may come back for other functions.
pub fn forget() {
    let mut link = &TABLE;
    loop {
        let table = link.load(Acquire);
        if table.is_null() {
            return;
        }
        // SAFETY: tables are never freed.
        let table = unsafe { &*table };
        for slot in table.slots.iter().filter(|s| s.function.load(Acquire) != 0) {
            slot.layout.store(ptr::null_mut(), Release);
        }
        link = &table.next;
    }
}

/// Asks the driver, and gives a layout that is never freed: the same for all functions that are alike.
///
/// # Safety
/// As for [`layout`].
unsafe fn ask(function: *mut c_void) -> *mut Layout {
    static ALL: Mutex<Option<HashSet<&'static Layout>>> = Mutex::new(None);
    // SAFETY: the caller's promise.
    let Some(parameters) = (unsafe { driver::parameters(function) }) else {
        return UNKNOWN;
    };
    let layout = Layout::new(&parameters);
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    let known = all.get(&layout).copied().unwrap_or_else(|| {
        let new: &'static Layout = Box::leak(Box::new(layout));
        all.insert(new);
        new
    });
    ptr::from_ref(known).cast_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(
        layout: &Layout,
        parameters: &[*mut c_void],
        extra: &[*mut c_void],
    ) -> Vec<(usize, u64)> {
        let mut all = Vec::new();
        let some = |list: &[*mut c_void]| {
            if list.is_empty() {
                ptr::null()
            } else {
                list.as_ptr()
            }
        };
        // SAFETY: the tests' arguments fit their layouts.
        unsafe { layout.each(some(parameters), some(extra), |i, word| all.push((i, word))) };
        all
    }

    #[test]
    fn words_are_aligned_and_within_their_parameters() {
        // A pointer; an int; a struct of 20 bytes at 16; a packed one of 13 at 36, of which 40 to 48 is a word.
        let layout = Layout::new(&[(0, 8), (8, 4), (16, 20), (36, 13)]);
        assert_eq!(layout.len(), 4);
        let (mut a, mut b) = (0x11u64, 0x22u32);
        let mut c = [0x31u64.to_ne_bytes(), 0x32u64.to_ne_bytes()].concat();
        let mut d = [&[9; 4][..], &0x41u64.to_ne_bytes()[..], &[9]].concat();
        c.extend([9; 4]);
        let list = [
            (&raw mut a).cast(),
            (&raw mut b).cast(),
            c.as_mut_ptr().cast(),
            d.as_mut_ptr().cast(),
        ];
        let all = vec![(0, 0x11), (1, 0x31), (2, 0x32), (3, 0x41)];
        assert_eq!(words(&layout, &list, &[]), all);

        let mut packed = [0u8; 49];
        packed[..8].copy_from_slice(&a.to_ne_bytes());
        packed[16..36].copy_from_slice(&c);
        packed[36..].copy_from_slice(&d);
        for (size, count) in [(49, 4), (48, 4), (47, 3), (24, 2), (7, 0)] {
            let mut size = size;
            let size: *mut usize = &mut size;
            let buffer = packed.as_mut_ptr().cast();
            let key = |k: usize| k as *mut c_void;
            let extra = [key(2), size.cast(), key(1), buffer, key(0)];
            assert_eq!(words(&layout, &[], &extra), all[..count]);
        }
        assert_eq!(words(&layout, &[], &[ptr::null_mut()]), []);
        assert_eq!(words(&layout, &[], &[]), []);
        assert!(Layout::new(&[(0, 4), (4, 4)]).is_empty());
    }

    /// More functions than the first tables have room for, from several threads.
    #[test]
    fn every_function_has_a_slot_of_its_own() {
        let all: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    let slots = (1..20_000usize).map(|i| ptr::from_ref(slot(i << 4)) as usize);
                    slots.collect::<Vec<_>>()
                })
            })
            .map(|t| t.join().unwrap())
            .collect();
        assert!(all.iter().all(|slots| *slots == all[0]));
        let different: HashSet<_> = all[0].iter().collect();
        assert_eq!(different.len(), all[0].len());
        slot(16).layout.store(UNKNOWN, Release);
        forget();
        assert!(slot(16).layout.load(Acquire).is_null());
    }
}
