//! What the dynamic loader reads of a file: a few tables, wherever they are. Libraries with CUDA kernels may have
//! gigabytes, so only those tables are read.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use goblin::container::{Container, Ctx};
use goblin::elf::dynamic::{
    DF_1_NODEFLIB, DT_FLAGS_1, DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB,
};
use goblin::elf::program_header::{PT_DYNAMIC, PT_LOAD, ProgramHeader};
use goblin::elf::section_header::{SHT_NOBITS, SectionHeader};

use super::elf::arch_name;
use super::fatbin;

/// Larger tables are not believed.
const MOST: u64 = 16 << 20;

/// The loader's facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// The machine.
    pub arch: String,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// DT_RPATH.
    pub rpath: Option<String>,
    /// DT_RUNPATH; where it is, DT_RPATH does not count.
    pub runpath: Option<String>,
    /// It asks that the default directories be left out.
    pub no_default: bool,
    /// It has sections with CUDA kernels.
    pub has_kernels: bool,
    /// What those are for: `sm_90` as machine code, `compute_90` as PTX.
    pub kernels: Vec<String>,
}

impl Dynamic {
    /// Reads a file; `None` for anything but a sound ELF file. Never panics, whatever the bytes are.
    pub fn read(path: &Path) -> Option<Dynamic> {
        // A name may lead to a pipe, which must not be waited for.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)
            .ok()
            .filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()))?;
        // The parser is not ours, and hostile files have made it panic before.
        catch_unwind(AssertUnwindSafe(|| Reader::new(&file)?.facts())).ok()?
    }
}

/// These bytes of the file, if it has them and they are not absurdly many.
pub fn piece(file: &File, offset: u64, size: u64) -> Option<Vec<u8>> {
    let end = offset.checked_add(size)?;
    if size > MOST || end > file.metadata().ok()?.len() {
        return None;
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

struct Reader<'a> {
    file: &'a File,
    header: goblin::elf::Header,
    ctx: Ctx,
    segments: Vec<ProgramHeader>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a File) -> Option<Reader<'a>> {
        let size = file.metadata().ok()?.len().min(64);
        let header = goblin::elf::Elf::parse_header(&piece(file, 0, size)?).ok()?;
        let ctx = Ctx::new(header.container().ok()?, header.endianness().ok()?);
        let count = usize::from(header.e_phnum);
        let size = count * ProgramHeader::size(ctx);
        let table = piece(file, header.e_phoff, size as u64)?;
        let segments = ProgramHeader::parse(&table, 0, count, ctx).ok()?;
        Some(Reader {
            file,
            header,
            ctx,
            segments,
        })
    }

    fn facts(&self) -> Option<Dynamic> {
        let is_64 = self.ctx.container == Container::Big;
        let mut facts = Dynamic {
            arch: arch_name(self.header.e_machine, is_64),
            ..Dynamic::default()
        };
        self.dynamic(&mut facts);
        self.kernels(&mut facts);
        Some(facts)
    }

    /// A number of the file's word size.
    fn word(&self, bytes: &[u8]) -> u64 {
        let wide = |mut bytes: Vec<u8>| {
            if !self.ctx.le.is_little() {
                bytes.reverse();
            }
            bytes.resize(8, 0);
            bytes.try_into().map_or(0, u64::from_le_bytes)
        };
        wide(bytes.to_vec())
    }

    fn dynamic(&self, facts: &mut Dynamic) -> Option<()> {
        let segment = self.segments.iter().find(|s| s.p_type == PT_DYNAMIC)?;
        let table = piece(self.file, segment.p_offset, segment.p_filesz)?;
        let word = if self.ctx.container == Container::Big {
            8
        } else {
            4
        };
        let entries: Vec<(u64, u64)> = table
            .chunks_exact(2 * word)
            .map(|entry| (self.word(&entry[..word]), self.word(&entry[word..])))
            .take_while(|(tag, _)| *tag != 0)
            .collect();
        let value = |wanted| entries.iter().find(|(tag, _)| *tag == wanted).map(|e| e.1);
        let strings = piece(
            self.file,
            self.offset_of(value(DT_STRTAB)?)?,
            value(DT_STRSZ)?,
        )?;
        let string = |at: u64| {
            let rest = strings.get(usize::try_from(at).ok()?..)?;
            let text = rest.split(|b| *b == 0).next()?;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        facts.needed = entries
            .iter()
            .filter(|(tag, _)| *tag == DT_NEEDED)
            .filter_map(|(_, at)| string(*at))
            .collect();
        facts.rpath = value(DT_RPATH).and_then(string);
        facts.runpath = value(DT_RUNPATH).and_then(string);
        facts.no_default = value(DT_FLAGS_1).is_some_and(|f| f & DF_1_NODEFLIB != 0);
        Some(())
    }

    fn offset_of(&self, address: u64) -> Option<u64> {
        self.segments
            .iter()
            .filter(|s| s.p_type == PT_LOAD)
            .find_map(|s| {
                let inside = address.checked_sub(s.p_vaddr)?;
                (inside < s.p_filesz).then(|| s.p_offset.checked_add(inside))?
            })
    }

    /// nvcc puts kernels into sections of their own.
    fn kernels(&self, facts: &mut Dynamic) -> Option<()> {
        let count = usize::from(self.header.e_shnum);
        let size = count * SectionHeader::size(self.ctx);
        // The parser takes offset 0 for "no sections".
        let mut table = vec![0];
        table.extend(piece(self.file, self.header.e_shoff, size as u64)?);
        let sections = SectionHeader::parse(&table, 1, count, self.ctx).ok()?;
        let names = sections.get(usize::from(self.header.e_shstrndx))?;
        let names = piece(self.file, names.sh_offset, names.sh_size)?;
        for section in sections.iter().filter(|s| s.sh_type != SHT_NOBITS) {
            let name = names.get(section.sh_name..).unwrap_or_default();
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            if matches!(name, b".nv_fatbin" | b"__nv_relfatbin") {
                facts.has_kernels = true;
                fatbin::architectures(
                    self.file,
                    section.sh_offset,
                    section.sh_size,
                    &mut facts.kernels,
                );
            }
        }
        fatbin::in_order(&mut facts.kernels);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_itself() {
        let facts = Dynamic::read(Path::new("/proc/self/exe")).unwrap();
        assert_eq!(facts.arch, std::env::consts::ARCH);
        assert!(
            facts.needed.iter().any(|n| n.starts_with("libc.so")),
            "{facts:?}"
        );
        assert!(!facts.has_kernels && !facts.no_default);
    }

    #[test]
    fn damage_never_panics() {
        let whole = std::fs::read("/bin/sh").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for round in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random() % 8 {
                let range = if random() % 2 == 0 { 1024 } else { bytes.len() };
                bytes[random() % range] = random() as u8;
            }
            if round % 3 == 0 {
                bytes.truncate(random() % whole.len());
            }
            std::fs::write(&path, &bytes).unwrap();
            let _ = Dynamic::read(&path);
        }
        assert_eq!(Dynamic::read(dir.path()), None);
        assert_eq!(Dynamic::read(Path::new("/dev/zero")), None);
    }
}
