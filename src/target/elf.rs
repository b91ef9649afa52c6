//! What an executable file says about itself: for which machine it is, who loads it, and where CUDA comes in.

use std::panic::{AssertUnwindSafe, catch_unwind};

use goblin::elf::header::{EM_386, EM_AARCH64, EM_ARM, EM_PPC64, EM_RISCV, EM_X86_64};
use goblin::elf::program_header::{PT_LOAD, ProgramHeader};
use serde::Serialize;

/// Facts of an ELF executable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Elf {
    /// The machine, by Rust's names: `x86_64`, `aarch64`, ...
    pub arch: String,
    /// How it gets its libraries.
    pub linking: Linking,
    /// The dynamic loader that it asks for.
    pub interpreter: Option<String>,
    /// `gnu` or `musl`, by that loader.
    pub libc: Option<String>,
    /// The libraries that it names itself, in its order.
    pub needed: Vec<String>,
    /// Signs of CUDA, the surest first.
    pub cuda: Vec<CudaLink>,
    /// How the built-in CUDA runtime was recognised.
    pub static_runtime_by: Option<String>,
}

/// How an executable gets its libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Linking {
    /// A dynamic loader maps them, and preloaded ones before them.
    Dynamic,
    /// None, at a fixed address.
    Static,
    /// None, at any address.
    StaticPie,
    /// It is a dynamic loader itself, given a program as its argument.
    Loader,
}

/// One way in which an executable comes to CUDA.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case", tag = "how", content = "library")]
pub enum CudaLink {
    /// It is linked with the driver library.
    Driver,
    /// It is linked with this shared CUDA runtime.
    Runtime(String),
    /// It is linked with this library, which uses CUDA.
    Library(String),
    /// The CUDA runtime is part of the file.
    StaticRuntime,
    /// It names the driver library in its data: it may open it when it runs.
    OpensDriver,
}

impl CudaLink {
    /// Half a sentence about it.
    pub fn describe(&self) -> String {
        match self {
            CudaLink::Driver => "it is linked with the CUDA driver library".into(),
            CudaLink::Runtime(name) => format!("it is linked with the CUDA runtime {name}"),
            CudaLink::Library(name) => format!("it is linked with {name}, which uses CUDA"),
            CudaLink::StaticRuntime => "it has the CUDA runtime built in".into(),
            CudaLink::OpensDriver => "it names libcuda.so.1 and may open it when it runs".into(),
        }
    }
}

/// Why there are no facts.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// The kernel cannot execute it either.
    Damaged(String),
    /// It may well be executable, but not by these rules.
    Unknown(String),
}

/// Libraries that bring CUDA with them.
const CUDA_LIBRARIES: [&str; 12] = [
    "libcublas",
    "libcudnn",
    "libcufft",
    "libcurand",
    "libcusolver",
    "libcusparse",
    "libnccl",
    "libnvrtc",
    "libtorch_cuda",
    "libc10_cuda",
    "libggml-cuda",
    "libonnxruntime_providers_cuda",
];

impl Elf {
    /// Reads the facts out of a file's bytes.
    ///
    /// # Errors
    /// A [`Problem`] for anything else than a sound ELF executable. It never panics, whatever the bytes are.
    pub fn parse(bytes: &[u8]) -> Result<Elf, Problem> {
        // The parser is not ours, and hostile files have made it panic before.
        catch_unwind(AssertUnwindSafe(|| Elf::parse_inner(bytes)))
            .unwrap_or_else(|_| Err(Problem::Unknown("its ELF structure is odd".into())))
    }

    fn parse_inner(bytes: &[u8]) -> Result<Elf, Problem> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(Problem::Unknown(
                "it is neither an ELF program nor a script".into(),
            ));
        }
        let damaged = |what: &str| Problem::Damaged(format!("the ELF file is damaged: {what}"));
        let header =
            goblin::elf::Elf::parse_header(bytes).map_err(|_| damaged("its header is cut off"))?;
        let segments = header
            .container()
            .and_then(|container| {
                let ctx = goblin::container::Ctx::new(container, header.endianness()?);
                ProgramHeader::parse(bytes, header.e_phoff as usize, header.e_phnum.into(), ctx)
            })
            .map_err(|_| damaged("its program headers are cut off"))?;
        let is_cut = segments.iter().any(|segment| {
            let end = segment.p_offset.saturating_add(segment.p_filesz);
            segment.p_type == PT_LOAD && end > bytes.len() as u64
        });
        if is_cut {
            return Err(damaged("a part that is to be loaded is cut off"));
        }
        let elf = goblin::elf::Elf::parse(bytes)
            .map_err(|e| Problem::Unknown(format!("its ELF structure is odd ({e})")))?;

        let interpreter = elf.interpreter.map(str::to_string);
        let is_loader = elf.soname.is_some_and(is_loader_name);
        let linking = match (&interpreter, is_loader) {
            (_, true) => Linking::Loader,
            (Some(_), _) => Linking::Dynamic,
            (None, _) if elf.dynamic.is_some() => Linking::StaticPie,
            (None, _) => Linking::Static,
        };
        let loader = interpreter.as_deref().or(elf.soname.filter(|_| is_loader));
        let libc = loader.and_then(libc_of);
        let (cuda, static_runtime_by) = cuda_links(&elf, bytes);
        Ok(Elf {
            arch: arch_name(header.e_machine, elf.is_64),
            linking,
            libc,
            needed: elf.libraries.iter().map(|name| name.to_string()).collect(),
            cuda,
            static_runtime_by,
            interpreter,
        })
    }
}

/// The name of a machine.
pub fn arch_name(machine: u16, is_64: bool) -> String {
    match (machine, is_64) {
        (EM_X86_64, true) => "x86_64".into(),
        (EM_X86_64, false) => "x32".into(),
        (EM_386, _) => "x86".into(),
        (EM_AARCH64, _) => "aarch64".into(),
        (EM_ARM, _) => "arm".into(),
        (EM_PPC64, _) => "powerpc64".into(),
        (EM_RISCV, _) => "riscv64".into(),
        (other, _) => format!("machine-{other}"),
    }
}

fn is_loader_name(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.starts_with("ld-linux") || name.starts_with("ld-musl") || name.starts_with("ld64.so")
}

fn libc_of(loader: &str) -> Option<String> {
    let name = loader.rsplit('/').next().unwrap_or(loader);
    if name.starts_with("ld-musl") {
        Some("musl".into())
    } else if is_loader_name(name) {
        Some("gnu".into())
    } else {
        None
    }
}

/// What the name of a library says about CUDA.
pub fn cuda_link(name: &str) -> Option<CudaLink> {
    if name.starts_with("libcuda.so") {
        Some(CudaLink::Driver)
    } else if name.starts_with("libcudart.so") {
        Some(CudaLink::Runtime(name.to_string()))
    } else if CUDA_LIBRARIES.iter().any(|known| name.starts_with(known)) {
        Some(CudaLink::Library(name.to_string()))
    } else {
        None
    }
}

fn cuda_links(elf: &goblin::elf::Elf, bytes: &[u8]) -> (Vec<CudaLink>, Option<String>) {
    let mut links = Vec::new();
    links.extend(elf.libraries.iter().filter_map(|name| cuda_link(name)));
    // nvcc puts device code into these sections and registers it with the runtime at start. Without a shared runtime
    // among the libraries, the runtime is in the file.
    let has_runtime = links.iter().any(|l| matches!(l, CudaLink::Runtime(_)));
    let sign = if has_runtime {
        None
    } else {
        static_runtime(elf)
    };
    if sign.is_some() {
        links.push(CudaLink::StaticRuntime);
    }
    if memchr::memmem::find(bytes, b"libcuda.so.1").is_some() && !links.contains(&CudaLink::Driver)
    {
        links.push(CudaLink::OpensDriver);
    }
    links.sort();
    (links, sign)
}

/// What shows that device code is in the file.
fn static_runtime(elf: &goblin::elf::Elf) -> Option<String> {
    let section = elf.section_headers.iter().find_map(|section| {
        let name = elf.shdr_strtab.get_at(section.sh_name)?;
        matches!(name, ".nv_fatbin" | ".nvFatBinSegment" | "__nv_relfatbin").then_some(name)
    });
    if let Some(name) = section {
        return Some(format!("section {name}"));
    }
    const REGISTERS: &str = "__cudaRegisterFatBinary";
    let named = |strings: &goblin::strtab::Strtab, at| strings.get_at(at) == Some(REGISTERS);
    let is_there = elf.syms.iter().any(|s| named(&elf.strtab, s.st_name))
        || elf.dynsyms.iter().any(|s| named(&elf.dynstrtab, s.st_name));
    is_there.then(|| format!("symbol {REGISTERS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_itself() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!(elf.arch, std::env::consts::ARCH);
        assert_eq!(elf.linking, Linking::Dynamic);
        assert_eq!(elf.cuda, [CudaLink::OpensDriver]);
    }

    #[test]
    fn damage_never_panics() {
        let whole = std::fs::read("/bin/sh").unwrap();
        for length in (0..4096.min(whole.len())).chain((4096..whole.len()).step_by(997)) {
            // Cut off anywhere, the kernel could not load it, so no facts may be claimed about its libraries.
            let _ = Elf::parse(&whole[..length]);
        }
        // A cheap generator is enough here: what counts is that the same bytes are tried each time.
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for _ in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random() % 8 {
                // Mostly in the headers and tables, where the structure is.
                let range = if random() % 2 == 0 { 1024 } else { bytes.len() };
                let at = random() % range;
                bytes[at] = random() as u8;
            }
            let _ = Elf::parse(&bytes);
        }
    }

    #[test]
    fn cut_files_are_damaged() {
        let whole = std::fs::read("/bin/sh").unwrap();
        for length in [4, 20, 63, 64, 100, whole.len() / 2] {
            let result = Elf::parse(&whole[..length]);
            assert!(result.is_err(), "{length}: {result:?}");
        }
        assert!(matches!(Elf::parse(b"\x7fELF"), Err(Problem::Damaged(_))));
        assert!(matches!(Elf::parse(b"hello"), Err(Problem::Unknown(_))));
    }
}
