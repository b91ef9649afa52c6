//! Names and addresses: the shim replaces functions by the address that the resolver returned.

use std::collections::BTreeMap;
use std::ffi::CString;

use crate::api::Driver;
use crate::bench;
use crate::told::Told;

const ENDINGS: [&str; 12] = [
    "", "_v2", "_v3", "_v4", "_ptds", "_ptsz", "_v2_ptds", "_v2_ptsz", "_v3_ptsz", "_v4_ptsz",
    "_v1", "_v1_ptsz",
];

/// The name under which the resolver knows an exported function.
fn asked(exported: &str) -> &str {
    let name = exported.trim_end_matches("_ptds").trim_end_matches("_ptsz");
    match name.rsplit_once("_v") {
        Some((base, version)) if version.parse::<u32>().is_ok() => base,
        _ => name,
    }
}

pub(super) fn agree(told: &Told) {
    let cu = bench::load();
    let mut driver = 0;
    told.is(
        "cuDriverGetVersion",
        cu.cuDriverGetVersion(Some(&mut driver)),
        0,
    );
    let names = Driver::names()
        .iter()
        .filter(|n| n.starts_with("cu") && cu.symbol(n).is_some());
    let mut reached = BTreeMap::new();
    for exported in names.clone() {
        let name = asked(exported);
        let variants: Vec<usize> = ENDINGS
            .iter()
            .filter_map(|e| cu.symbol(&format!("{name}{e}")))
            .collect();
        let text = CString::new(name).expect("no NUL");
        let versions = [
            3020, 4000, 7000, 10020, 11030, 11040, 11070, 12000, 12020, 12040, 12080, 13000,
        ];
        for version in versions.into_iter().filter(|v| *v <= driver) {
            for flags in 0..=2 {
                let (mut old, mut new, mut status) = (0, 0, -1);
                let code = cu.cuGetProcAddress(text.as_ptr(), Some(&mut old), version, flags);
                cu.cuGetProcAddress_v2(
                    text.as_ptr(),
                    Some(&mut new),
                    version,
                    flags,
                    Some(&mut status),
                );
                for found in [old, new].into_iter().filter(|a| *a != 0) {
                    let known = variants.contains(&found);
                    told.is(
                        format!("{name} at {version} with flags {flags} is an exported address"),
                        known,
                        true,
                    );
                    reached.insert(found, name);
                }
                if code == 0 && driver >= 12000 {
                    told.is(
                        format!("{name} at {version} with flags {flags}: both resolvers"),
                        old,
                        new,
                    );
                }
                if driver >= 12000 {
                    told.is(
                        format!("{name} at {version} with flags {flags}: status and address"),
                        new != 0,
                        status == 0,
                    );
                }
            }
        }
    }
    // At some version and flag the resolver gives each of the functions that this program uses. (An older simulated driver
    // exports what it does not know.)
    let names = names.filter(|_| driver >= 13000);
    for exported in names.filter(|n| !n.starts_with("cuGetProcAddress")) {
        let address = cu.symbol(exported).unwrap_or(0);
        told.is(
            format!("{exported} is reached"),
            reached.contains_key(&address),
            true,
        );
    }
    let (mut address, mut status) = (1, -1);
    cu.cuGetProcAddress_v2(
        c"cuNoSuchThing".as_ptr(),
        Some(&mut address),
        driver,
        0,
        Some(&mut status),
    );
    if driver >= 12000 {
        told.is("a name that nobody knows", address, 0);
    }
}
