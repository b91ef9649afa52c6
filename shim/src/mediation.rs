//! What the shim has to know of each function of the driver, and what it hands out for those it does not intercept.
//!
//! `symbols.txt` holds a driver's functions with their class. It is searched as it is: nothing is parsed before or kept.
//! A function that freezes, or that is not in the list because the driver is newer, is handed out behind a stub of
//! [`crate::freeze`]; everything else as the driver gave it. Gated functions pass the shim by their row in
//! [`crate::hooks`]: a test holds the two to each other. Those that only name memory need none, since a name stays valid
//! wherever the bytes are.

use std::cmp::Ordering;
use std::ffi::CStr;

use crate::{elf, freeze};

/// What a driver function may do to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Starts work that touches memory, or changes what is mapped.
    Gated,
    /// Names memory for work that starts later, by a gated function.
    Naming,
    /// Neither names nor touches memory that could move.
    Harmless,
    /// Names memory in a way that the shim cannot follow.
    Freezing,
}

const LIST: &[u8] = without_comments(include_bytes!("../symbols.txt"));

const fn without_comments(mut text: &[u8]) -> &[u8] {
    while let [b'#', ..] = text {
        while let [byte, rest @ ..] = text {
            text = rest;
            if *byte == b'\n' {
                break;
            }
        }
    }
    text
}

/// Class of a function, and why where that is not plain. Allocates nothing.
pub fn class_of(name: &[u8]) -> Option<(Class, &'static str)> {
    let (mut low, mut high) = (0, LIST.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let start = LIST[low..middle]
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(low, |at| low + at + 1);
        let length = LIST[start..].iter().position(|&b| b == b'\n');
        let line = &LIST[start..start + length.unwrap_or(LIST.len() - start)];
        let (found, rest) = cut(line);
        match name.cmp(found) {
            Ordering::Less => high = start,
            Ordering::Greater => low = start + line.len() + 1,
            Ordering::Equal => {
                let (class, reason) = cut(rest);
                let class = match class {
                    b"gated" => Class::Gated,
                    b"naming" => Class::Naming,
                    b"harmless" => Class::Harmless,
                    _ => Class::Freezing,
                };
                return Some((class, std::str::from_utf8(reason).unwrap_or("")));
            }
        }
    }
    None
}

/// A line before and after its first space.
fn cut(line: &[u8]) -> (&[u8], &[u8]) {
    let at = line.iter().position(|&b| b == b' ');
    at.map_or((line, b""), |at| (&line[..at], &line[at + 1..]))
}

/// Whether a name is spelled like the driver's: cuBLAS, cuDNN and libcudart go on in lower case (PITFALLS 2).
fn spelled_like_the_drivers(name: &[u8]) -> bool {
    name.starts_with(b"cudbg") || matches!(name, [b'c', b'u', b'A'..=b'Z', ..])
}

/// Whether a function of this name freezes, or would if the driver had it.
pub fn is_suspect(name: &[u8]) -> bool {
    use Class::*;
    spelled_like_the_drivers(name) && matches!(class_of(name), None | Some((Freezing, _)))
}

/// Whether an object is the driver, by its file name.
pub fn is_driver(object: &elf::Object) -> bool {
    object.name().starts_with(b"libcuda.so")
}

/// Whether a name is suspect and a loaded driver has it.
pub fn is_suspect_of_driver(name: &CStr) -> bool {
    is_suspect(name.to_bytes())
        && elf::with(|o| is_driver(o) && o.symbol(name).is_some(), |_| ()).is_some()
}

/// What the program gets for a function at `address` that is not intercepted, and that it asked for as `name`: the
/// address itself, or a stub.
///
/// The address decides, not the name: `cuGetProcAddress` gives versions of a function by its plain name. Code that the
/// driver also exports under a harmless or gated name is what that name says.
pub fn hand_out(address: usize, name: &CStr) -> usize {
    let stub = elf::with(
        |o| o.contains(address),
        |o| {
            is_driver(o)
                && o.has_code_at(address)
                && !o.any_name_at(address, |n| !is_suspect(n.to_bytes()))
        },
    );
    if stub == Some(true) {
        freeze::stub(address, name)
    } else {
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> impl Iterator<Item = &'static str> {
        std::str::from_utf8(LIST).unwrap().lines()
    }

    #[test]
    fn the_list_is_sorted_and_every_line_parses() {
        let names: Vec<&str> = lines().map(|l| l.split(' ').next().unwrap()).collect();
        assert!(
            names.windows(2).all(|w| w[0] < w[1]),
            "not sorted, or a name twice"
        );
        // As many as libcuda.so.580.159.04 has.
        assert!(names.len() >= 707, "{}", names.len());
        for line in lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            assert!(spelled_like_the_drivers(words[0].as_bytes()), "{line}");
            assert!(
                matches!(words[1], "gated" | "naming" | "harmless" | "freezing"),
                "{line}"
            );
            assert!(
                words[1] != "freezing" || words.len() == 3,
                "{line}: no reason"
            );
            assert!(
                words.len() == 2 || !words[2].trim().is_empty() && words[2].trim() == words[2],
                "{line}"
            );
        }
    }

    #[test]
    fn every_line_is_found() {
        for line in lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            let (class, reason) = class_of(words[0].as_bytes()).expect(line);
            assert_eq!(format!("{class:?}").to_lowercase(), words[1], "{line}");
            assert_eq!(reason, *words.get(2).unwrap_or(&""), "{line}");
            assert_eq!(
                is_suspect(words[0].as_bytes()),
                class == Class::Freezing,
                "{line}"
            );
        }
    }

    #[test]
    fn other_names_are_not() {
        for name in ["", "a", "cu", "cuArray3DCreat", "cuInit_v2", "cuZ", "zzz"] {
            assert_eq!(class_of(name.as_bytes()), None, "{name}");
        }
        assert!(is_suspect(b"cuInit_v2") && is_suspect(b"cuFutureCopyAsync"));
        for name in ["cublasCreate_v2", "cudaMalloc", "cudnnCreate", "cu", ""] {
            assert!(!is_suspect(name.as_bytes()), "{name}");
        }
    }

    /// What the shim intercepts it follows, so none of it may freeze; and what takes part in this has its class.
    #[test]
    fn intercepted_functions_do_not_freeze() {
        for hook in crate::functions::hooks().iter().filter(|h| h.is_cuda()) {
            let class = class_of(hook.name.as_bytes()).map(|(class, _)| class);
            assert!(
                !matches!(class, None | Some(Class::Freezing)),
                "{}: {class:?}",
                hook.name
            );
        }
    }

    /// Nothing that starts work may bypass the gate.
    #[test]
    fn gated_functions_are_intercepted() {
        let hooks = crate::functions::hooks();
        for name in lines().filter_map(|l| l.split(' ').next()) {
            let gated = matches!(class_of(name.as_bytes()), Some((Class::Gated, _)));
            assert!(!gated || hooks.iter().any(|h| h.name == name), "{name}");
        }
    }

    #[test]
    fn some_that_matter() {
        let class = |name: &str| class_of(name.as_bytes()).map(|(class, _)| class);
        for name in [
            "cuLaunchKernel",
            "cuLaunchKernelEx_ptsz",
            "cuMemcpyBatchAsync_v2_ptsz",
            "cuMemBatchDecompressAsync",
            "cuGraphLaunch",
            "cuMemsetD2D32Async_ptsz",
            "cuStreamWriteValue64_v2",
            "cuMemPrefetchBatchAsync",
            "cuIpcGetMemHandle",
            "cuPointerSetAttribute",
            "cuMemMapArrayAsync",
            "cuMemGetHandleForAddressRange",
        ] {
            assert_eq!(class(name), Some(Class::Gated), "{name}");
        }
        for name in [
            "cuMemcpyDtoD",
            "cuMulticastBindAddr",
            "cuGraphicsMapResources",
            "cudbgGetAPI",
            "cuLaunchGrid",
            "cuCheckpointProcessRestore",
        ] {
            assert_eq!(class(name), Some(Class::Freezing), "{name}");
        }
        // libcudart calls it in every process.
        assert_eq!(class("cuGetExportTable"), Some(Class::Harmless));
    }

    /// A plain address is handed out as it is: its object is no driver.
    #[test]
    fn other_providers_are_left_alone() {
        let here = other_providers_are_left_alone as *const () as usize;
        assert_eq!(hand_out(here, c"cuFutureCopyAsync"), here);
        assert_eq!(hand_out(1, c"cuFutureCopyAsync"), 1);
    }
}
