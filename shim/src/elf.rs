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

    /// Whether an address is that of code of this object.
    pub fn has_code_at(&self, address: usize) -> bool {
        self.headers().iter().any(|h| {
            let start = (self.0.dlpi_addr as usize).wrapping_add(h.p_vaddr as usize);
            h.p_type == libc::PT_LOAD
                && h.p_flags & libc::PF_X != 0
                && address.wrapping_sub(start) < h.p_memsz as usize
        })
    }

    /// How many objects the loader has loaded so far.
    pub fn loads(&self) -> u64 {
        self.0.dlpi_adds
    }

    /// The address of a symbol that the object defines.
    pub fn symbol(&self, name: &CStr) -> Option<usize> {
        let tables = self.tables()?;
        // SAFETY: the tables of an object that is loaded, and stays so while the loader shows it.
        unsafe { gnu_lookup(&tables, name) }
    }

    /// Whether one of the names under which the object defines this address satisfies `f`.
    pub fn any_name_at(&self, address: usize, f: impl Fn(&CStr) -> bool) -> bool {
        let Some(tables) = self.tables() else {
            return false;
        };
        // SAFETY: as above.
        unsafe {
            tables.hashed(|entry| {
                entry.st_shndx != 0
                    && tables.base.wrapping_add(entry.st_value as usize) == address
                    && f(tables.name(entry))
            })
        }
    }

    /// Gives `f` the names that the object wants from others; some come twice.
    pub fn each_undefined(&self, mut f: impl FnMut(&CStr)) {
        let Some(tables) = self.tables() else { return };
        // SAFETY: as above; a relocation's symbol is in the symbol table.
        unsafe {
            let mut look = |index: usize| {
                let entry = &*tables.symbols.add(index);
                if index != 0 && entry.st_shndx == 0 {
                    f(tables.name(entry));
                }
            };
            // The undefined symbols come before the hashed ones. Where nothing is hashed the table does not say how
            // many there are: then the relocations name those that are used.
            let hash = tables.hash;
            let (buckets, first, bloom) = (*hash, *hash.add(1), *hash.add(2));
            let bucket = hash.add(4 + bloom as usize * 2);
            let empty = (0..buckets as usize).all(|i| *bucket.add(i) == 0);
            if !empty || first > 1 {
                (0..first as usize).for_each(look);
                return;
            }
            for (start, bytes) in tables.relocations {
                let start = start as *const libc::Elf64_Rela;
                for i in 0..bytes / size_of::<libc::Elf64_Rela>() {
                    look(((*start.add(i)).r_info >> 32) as usize);
                }
            }
        }
    }

    fn tables(&self) -> Option<Tables> {
        let base = self.0.dlpi_addr as usize;
        let dynamic = self
            .headers()
            .iter()
            .find(|h| h.p_type == libc::PT_DYNAMIC)?;
        let mut entry = base.wrapping_add(dynamic.p_vaddr as usize) as *const [u64; 2];
        let (mut strings, mut symbols, mut hash) = (0usize, 0usize, 0usize);
        let mut relocations = [(0, 0); 2];
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
                DT_RELA => relocations[0].0 = address,
                DT_RELASZ => relocations[0].1 = value as usize,
                DT_JMPREL => relocations[1].0 = address,
                DT_PLTRELSZ => relocations[1].1 = value as usize,
                _ => {}
            }
            // SAFETY: not yet at DT_NULL, so another entry follows.
            entry = unsafe { entry.add(1) };
        }
        relocations
            .iter_mut()
            .filter(|r| r.0 == 0)
            .for_each(|r| r.1 = 0);
        (strings != 0 && symbols != 0 && hash != 0).then_some(Tables {
            base,
            strings,
            symbols: symbols as *const libc::Elf64_Sym,
            hash: hash as *const u32,
            relocations,
        })
    }
}

const DT_PLTRELSZ: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_JMPREL: u64 = 23;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const STT_GNU_IFUNC: u8 = 10;

/// Where the tables of a loaded object are. They are well-formed, or the loader would have refused it.
struct Tables {
    base: usize,
    strings: usize,
    symbols: *const libc::Elf64_Sym,
    hash: *const u32,
    /// Address and bytes.
    relocations: [(usize, usize); 2],
}

impl Tables {
    /// # Safety
    /// The object is loaded, and the symbol one of its own.
    unsafe fn name(&self, entry: &libc::Elf64_Sym) -> &CStr {
        // SAFETY: the string table holds NUL-terminated names.
        unsafe { CStr::from_ptr((self.strings + entry.st_name as usize) as *const c_char) }
    }

    /// Whether a symbol in the hash table satisfies `f`.
    ///
    /// # Safety
    /// The object is loaded.
    unsafe fn hashed(&self, f: impl Fn(&libc::Elf64_Sym) -> bool) -> bool {
        // SAFETY: the layout that `gnu_lookup` describes.
        unsafe {
            let (buckets, first, bloom) = (*self.hash, *self.hash.add(1), *self.hash.add(2));
            let bucket = self.hash.add(4 + bloom as usize * 2);
            let chain = bucket.add(buckets as usize);
            (0..buckets as usize).any(|i| {
                let mut index = *bucket.add(i);
                while index >= first {
                    if f(&*self.symbols.add(index as usize)) {
                        return true;
                    }
                    if *chain.add((index - first) as usize) & 1 == 1 {
                        break;
                    }
                    index += 1;
                }
                false
            })
        }
    }
}

/// # Safety
/// The tables are those of a loaded object.
unsafe fn gnu_lookup(tables: &Tables, symbol: &CStr) -> Option<usize> {
    let hash = tables.hash;
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
            let entry = &*tables.symbols.add(index as usize);
            // An indirect function's value is its resolver, not the function.
            let indirect = entry.st_info & 0xf == STT_GNU_IFUNC;
            let defined = entry.st_shndx != 0 && entry.st_value != 0 && !indirect;
            if word | 1 == wanted | 1 && defined && tables.name(entry) == symbol {
                return Some(tables.base + entry.st_value as usize);
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
    fn names_what_lies_at_an_address() {
        let malloc = in_libc(c"malloc").unwrap();
        let libc = |f: &dyn Fn(&Object) -> bool| with(|o| o.contains(malloc), |o| f(o)).unwrap();
        assert!(libc(&|o| o.any_name_at(malloc, |n| n == c"malloc")));
        assert!(!libc(&|o| o.any_name_at(malloc, |n| n == c"free")));
        assert!(!libc(&|o| o.any_name_at(malloc + 1, |_| true)));
        assert!(libc(&|o| o.has_code_at(malloc)));
        let data = in_libc(c"environ").unwrap();
        assert!(libc(&|o| o.contains(data) && !o.has_code_at(data)));
    }

    #[test]
    fn knows_what_an_object_wants() {
        let mut found = false;
        // The program itself comes first.
        with(
            |_| true,
            |o| o.each_undefined(|n| found |= n == c"dl_iterate_phdr"),
        );
        assert!(found);
        // Another library, which has a hash table.
        let mut wants = false;
        with(
            |o| o.name().starts_with(b"libgcc_s"),
            |o| o.each_undefined(|n| wants |= n == c"dl_iterate_phdr" || n == c"abort"),
        );
        assert!(wants);
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
