//! Objects that are already loaded, and their symbols, without asking `dlsym` (which is us).
//!
//! An object's own hash table is read where the loader mapped it: nothing is allocated, no lock of ours is taken;
//! `dl_iterate_phdr` holds the loader's list lock for the duration. A link map as a handle for the real `dlsym` will not
//! do: glibc never builds the search list of an object that was loaded at program start, and reads through null.

use std::ffi::{CStr, c_char, c_int, c_void};

/// A loaded object, while the loader shows it.
pub struct Object<'a>(&'a libc::dl_phdr_info);

/// Runs `f` with the first loaded object that `pick` accepts.
pub fn with<T>(pick: impl Fn(&Object) -> bool, f: impl FnOnce(&Object) -> T) -> Option<T> {
    let mut f = Some(f);
    let mut result = None;
    let mut visitor = |object: &Object| {
        let found = pick(object);
        if found && let Some(f) = f.take() {
            result = Some(f(object));
        }
        found
    };
    let mut visitor: &mut dyn FnMut(&Object) -> bool = &mut visitor;
    // SAFETY: the callback gets exactly this reference, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut visitor).cast()) };
    result
}

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    data: *mut c_void,
) -> c_int {
    // SAFETY: `with` passes its visitor, and the loader a valid `info` for the duration of the call.
    unsafe { (*data.cast::<&mut dyn FnMut(&Object) -> bool>())(&Object(&*info)).into() }
}

impl Object<'_> {
    /// File name without its directory; empty for the program itself.
    pub fn name(&self) -> &[u8] {
        if self.0.dlpi_name.is_null() {
            return b"";
        }
        // SAFETY: the loader's names are NUL-terminated.
        let path = unsafe { CStr::from_ptr(self.0.dlpi_name) }.to_bytes();
        path.rsplit(|&b| b == b'/').next().unwrap_or(path)
    }

    /// Whether an address is inside one of its segments.
    pub fn contains(&self, address: usize) -> bool {
        self.headers().iter().any(|h| {
            let start = (self.0.dlpi_addr as usize).wrapping_add(h.p_vaddr as usize);
            h.p_type == libc::PT_LOAD && address.wrapping_sub(start) < h.p_memsz as usize
        })
    }

    fn headers(&self) -> &[libc::Elf64_Phdr] {
        // SAFETY: the loader gives the program header table and its length.
        unsafe { std::slice::from_raw_parts(self.0.dlpi_phdr, self.0.dlpi_phnum.into()) }
    }

    /// The address of a symbol that the object defines.
    pub fn symbol(&self, name: &CStr) -> Option<usize> {
        // SAFETY: the object is loaded and stays so while the loader shows it.
        unsafe { lookup(self, name) }
    }
}

const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const STT_GNU_IFUNC: u8 = 10;

/// # Safety
/// The object is loaded.
unsafe fn lookup(object: &Object, symbol: &CStr) -> Option<usize> {
    let base = object.0.dlpi_addr as usize;
    let headers = object.headers();
    let dynamic = headers.iter().find(|h| h.p_type == libc::PT_DYNAMIC)?;
    let mut entry = (base + dynamic.p_vaddr as usize) as *const [u64; 2];
    let (mut strings, mut symbols, mut hash) = (0usize, 0usize, 0usize);
    loop {
        // SAFETY: the dynamic section ends with a DT_NULL entry, at which the loop stops.
        let [tag, value] = unsafe { entry.read() };
        // glibc stores absolute addresses here; other loaders leave the offsets of the file.
        let address = if (value as usize) < base {
            base + value as usize
        } else {
            value as usize
        };
        match tag {
            0 => break,
            DT_STRTAB => strings = address,
            DT_SYMTAB => symbols = address,
            DT_GNU_HASH => hash = address,
            _ => {}
        }
        // SAFETY: not yet at DT_NULL, so another entry follows.
        entry = unsafe { entry.add(1) };
    }
    if strings == 0 || symbols == 0 || hash == 0 {
        return None;
    }
    // SAFETY: the three tables belong to a loaded object and are well-formed, or the loader would have refused it.
    unsafe {
        gnu_lookup(
            base,
            strings,
            symbols as *const libc::Elf64_Sym,
            hash as *const u32,
            symbol,
        )
    }
}

/// # Safety
/// The tables are those of a loaded object.
unsafe fn gnu_lookup(
    base: usize,
    strings: usize,
    symbols: *const libc::Elf64_Sym,
    hash: *const u32,
    symbol: &CStr,
) -> Option<usize> {
    let wanted = symbol
        .to_bytes()
        .iter()
        .fold(5381u32, |h, &b| h.wrapping_mul(33).wrapping_add(b.into()));
    // SAFETY: header (bucket count, first hashed symbol, bloom words, shift), bloom filter, buckets, chains: the layout
    // of DT_GNU_HASH. A chain ends at the word with the lowest bit set.
    unsafe {
        let (buckets, first, bloom) = (*hash, *hash.add(1), *hash.add(2));
        if buckets == 0 {
            return None;
        }
        let bucket = hash.add(4 + bloom as usize * 2);
        let chain = bucket.add(buckets as usize);
        let mut index = *bucket.add((wanted % buckets) as usize);
        if index < first {
            return None;
        }
        loop {
            let word = *chain.add((index - first) as usize);
            let entry = &*symbols.add(index as usize);
            // An indirect function's value is its resolver, not the function.
            let indirect = entry.st_info & 0xf == STT_GNU_IFUNC;
            let defined = entry.st_shndx != 0 && entry.st_value != 0 && !indirect;
            if word | 1 == wanted | 1
                && defined
                && CStr::from_ptr((strings + entry.st_name as usize) as *const c_char) == symbol
            {
                return Some(base + entry.st_value as usize);
            }
            if word & 1 == 1 {
                return None;
            }
            index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_libc(name: &CStr) -> Option<usize> {
        with(|o| o.name().starts_with(b"libc.so."), |o| o.symbol(name)).flatten()
    }

    #[test]
    fn finds_what_the_loader_finds() {
        for name in [c"dlsym", c"malloc", c"qsort", c"getenv"] {
            // SAFETY: a plain lookup.
            let expected = unsafe {
                let libc = libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_LAZY);
                libc::dlsym(libc, name.as_ptr()) as usize
            };
            assert_eq!(in_libc(name), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn says_no() {
        assert_eq!(in_libc(c"no_such_function_here"), None);
        assert!(with(|o| o.name() == b"libnothere.so", |_| ()).is_none());
    }

    #[test]
    fn knows_whose_an_address_is() {
        let malloc = in_libc(c"malloc").unwrap();
        assert_eq!(
            with(
                |o| o.contains(malloc),
                |o| o.name().starts_with(b"libc.so.")
            ),
            Some(true)
        );
        assert_eq!(with(|o| o.contains(1), |_| ()), None);
    }
}
