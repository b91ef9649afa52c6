//! What the launcher leaves word of for the keeper, should it be killed: whether the user's terminal is in its hands, and
//! what would free it of the modes that the program has turned on.
//!
//! A page that both share. The launcher can be killed at any instruction, so the text has two places, of which one is
//! whole.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes of a text; more modes than these can name are not tracked.
const LONGEST: usize = 480;

struct Page {
    in_charge: AtomicBool,
    which: AtomicUsize,
    lengths: [AtomicUsize; 2],
    texts: [[AtomicU8; LONGEST]; 2],
}

/// The page, on either side of a fork.
pub struct Rescue {
    page: NonNull<Page>,
    /// What is written there, as far as this side knows.
    text: String,
}

impl Rescue {
    /// A page that says nothing.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new() -> io::Result<Rescue> {
        let size = NonZeroUsize::new(size_of::<Page>()).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: fresh memory that nothing else refers to.
        let page = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_SHARED) }?;
        Ok(Rescue {
            page: page.cast(),
            text: String::new(),
        })
    }

    fn page(&self) -> &Page {
        // SAFETY: the mapping has the page's size, is aligned as pages are, lives as long as we, and holds zeroes at
        // first, which are valid for atomics.
        unsafe { self.page.as_ref() }
    }

    /// Whether the terminal is in the launcher's hands.
    pub fn set_charge(&self, in_charge: bool) {
        self.page().in_charge.store(in_charge, SeqCst);
    }

    /// Leaves the text that frees the terminal.
    pub fn leave(&mut self, text: &str) {
        if text == self.text || text.len() > LONGEST {
            return;
        }
        let page = self.page();
        let other = 1 - page.which.load(SeqCst) % 2;
        for (place, byte) in page.texts[other].iter().zip(text.bytes()) {
            place.store(byte, SeqCst);
        }
        page.lengths[other].store(text.len(), SeqCst);
        page.which.store(other, SeqCst);
        self.text = text.to_string();
    }

    /// How long the text is that was left last.
    pub fn length(&self) -> usize {
        self.text.len()
    }

    /// What the other side left; `None`: the terminal was not in its hands.
    pub fn read(&self) -> Option<Vec<u8>> {
        let page = self.page();
        let which = page.which.load(SeqCst) % 2;
        let length = page.lengths[which].load(SeqCst);
        let bytes = page.texts[which].iter().take(length);
        let bytes = bytes.map(|byte| byte.load(SeqCst)).collect();
        page.in_charge.load(SeqCst).then_some(bytes)
    }
}

impl Drop for Rescue {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        let _ = unsafe { munmap(self.page.cast(), size_of::<Page>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_read() {
        let mut rescue = Rescue::new().unwrap();
        assert_eq!(rescue.read(), None);
        rescue.set_charge(true);
        assert_eq!(rescue.read(), Some(vec![]));
        for text in ["\x1b[?1049l", "\x1b[?1049l\x1b[?25h", "", "x"] {
            rescue.leave(text);
            assert_eq!(rescue.read().unwrap(), text.as_bytes());
            assert_eq!(rescue.length(), text.len());
        }
        rescue.leave(&"y".repeat(LONGEST + 1));
        assert_eq!(
            rescue.read().unwrap(),
            b"x",
            "rather the last one than a part"
        );
        rescue.set_charge(false);
        assert_eq!(rescue.read(), None);
    }

    /// Killed at any instruction, the launcher has left the old text or the new one.
    #[test]
    fn it_is_always_whole() {
        let mut rescue = Rescue::new().unwrap();
        rescue.set_charge(true);
        let texts = ["a".repeat(100), "b".repeat(300)];
        rescue.leave(&texts[0]);
        for n in 1..50 {
            let next = &texts[n % 2];
            // As far as it gets: the text is being written into the other place.
            let page = rescue.page();
            let other = 1 - page.which.load(SeqCst);
            for (place, byte) in page.texts[other].iter().zip(next.bytes()).take(n) {
                place.store(byte, SeqCst);
            }
            let read = rescue.read().unwrap();
            assert_eq!(read, texts[(n + 1) % 2].as_bytes());
            rescue.leave(next);
        }
    }
}
