//! What the built library exports.

use std::collections::BTreeSet;

use goblin::elf::Elf;

use crate::harness::{hooked, shim};

/// PITFALLS 5 and 12: exactly the table, `dlsym` and `dlvsym`; nothing dropped by the linker, nothing that leaks out.
#[test]
fn p05_p12_exports_are_the_table() {
    let bytes = std::fs::read(shim()).unwrap();
    let elf = Elf::parse(&bytes).unwrap();
    let exported: BTreeSet<String> = elf
        .dynsyms
        .iter()
        .filter(|s| s.st_shndx != 0 && s.st_bind() != goblin::elf::sym::STB_LOCAL)
        .map(|s| elf.dynstrtab.get_at(s.st_name).unwrap().to_string())
        .collect();
    let mut table: BTreeSet<String> = hooked().into_iter().collect();
    assert_eq!(table.len(), hooked().len(), "a name twice in the table");
    table.extend(["dlsym".into(), "dlvsym".into()]);
    let missing: Vec<_> = table.difference(&exported).collect();
    let extra: Vec<_> = exported.difference(&table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "not exported: {missing:?}; not in the table: {extra:?}"
    );
}

/// PITFALLS 5: every name in the table is one that a driver has or had, spelled as there.
#[test]
fn p05_names_are_the_drivers() {
    for name in hooked() {
        assert!(
            name.starts_with("cu") || name.starts_with("nvml"),
            "{name} is no driver function"
        );
    }
}

/// PITFALLS 11: a library that every process of the user's loads needs the C library and nothing else.
#[test]
fn p11_needs_only_the_c_library() {
    let bytes = std::fs::read(shim()).unwrap();
    let elf = Elf::parse(&bytes).unwrap();
    for library in &elf.libraries {
        assert!(
            [
                "libc.so.6",
                "libgcc_s.so.1",
                "ld-linux-x86-64.so.2",
                "libdl.so.2",
                "libpthread.so.0"
            ]
            .contains(library),
            "needs {library}"
        );
    }
    // No constructor but the start files' own and the one of Rust's std, which keeps argc and argv.
    let init: Vec<_> = elf
        .section_headers
        .iter()
        .filter(|s| elf.shdr_strtab.get_at(s.sh_name) == Some(".init_array"))
        .map(|s| s.sh_size / 8)
        .collect();
    assert!(init.iter().sum::<u64>() <= 2, "constructors: {init:?}");
}
