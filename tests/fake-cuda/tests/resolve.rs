//! Names and addresses: `dlsym` and `cuGetProcAddress` agree, for every driver version.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use common::*;
use std::ffi::{CStr, CString, c_void};

fn names() -> Vec<String> {
    let output = std::process::Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text
        .lines()
        .filter_map(|l| l.split_whitespace().nth(2))
        .filter(|n| n.starts_with("cu") && !n.starts_with("cuFuture"));
    names.map(str::to_owned).collect()
}

/// The name under which the resolver knows an exported function.
fn asked(exported: &str) -> String {
    let mut name = exported.trim_end_matches("_ptds").trim_end_matches("_ptsz");
    if let Some((base, version)) = name.rsplit_once("_v")
        && version.parse::<u32>().is_ok()
    {
        name = base;
    }
    name.to_owned()
}

fn resolve(name: &str, version: i32, flags: u64) -> (i32, *mut c_void, i32) {
    let name = CString::new(name).unwrap();
    let (mut address, mut status) = (std::ptr::null_mut(), -1i32);
    let result = cu!(cuGetProcAddress_v2(
        name.as_ptr(),
        &mut address,
        version,
        flags,
        &mut status
    ));
    (result, address, status)
}

#[test]
fn resolvers_agree() {
    clean("resolvers_agree", &[], || {
        let names = names();
        assert!(names.len() > 250, "{}", names.len());
        let by_address: std::collections::BTreeMap<usize, &String> =
            names.iter().map(|n| (lookup(n) as usize, n)).collect();
        let mut found = std::collections::BTreeSet::new();
        for name in &names {
            for flags in [0, 1, 2] {
                for version in (2000..=13000).step_by(10).filter(|v| v % 1000 <= 90) {
                    let (result, address, status) = resolve(&asked(name), version, flags);
                    assert_eq!(result, 0);
                    assert_eq!(address.is_null(), status != 0, "{name} {version} {flags}");
                    if address.is_null() {
                        assert_eq!(status, 2);
                        continue;
                    }
                    // The address is that of an exported name with the same base.
                    let own = *by_address
                        .get(&(address as usize))
                        .expect("an address nobody exports");
                    assert_eq!(asked(own), asked(name));
                    assert!(
                        flags == 2 || !own.contains("_pts") && !own.contains("_ptd"),
                        "{own} for flags {flags}"
                    );
                    found.insert(own.clone());
                }
            }
        }
        let missing: Vec<&String> = names.iter().filter(|n| !found.contains(*n)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(resolve("", 13000, 0).2, 1);
        assert_eq!(resolve("cuNoSuchThing", 13000, 0).2, 1);
        assert_eq!(resolve("cuFutureCopyAsync", 13000, 0).2, 1);
        assert_eq!(resolve("cuMemCreate", 10010, 0).2, 2);
        assert_eq!(resolve("cuMemCreate", 13010, 0).0, 1);
        assert_eq!(
            resolve("cuGetProcAddress", 11030, 0).1,
            symbol("cuGetProcAddress")
        );
        assert_eq!(
            resolve("cuGetProcAddress", 12000, 0).1,
            symbol("cuGetProcAddress_v2")
        );
        assert_eq!(
            resolve("cuMemcpyHtoDAsync", 13000, 2).1,
            symbol("cuMemcpyHtoDAsync_v2_ptsz")
        );
        assert_eq!(
            resolve("cuMemcpyHtoDAsync", 13000, 0).1,
            symbol("cuMemcpyHtoDAsync_v2")
        );
        assert_eq!(resolve("cuMemAlloc", 13000, 2).1, symbol("cuMemAlloc_v2"));
    });
}

#[test]
fn an_old_driver_knows_less() {
    clean(
        "an_old_driver_knows_less",
        &[("FAKE_CUDA_DRIVER", "11040")],
        || {
            start();
            let resolve = |name: &CStr| {
                let mut address = std::ptr::null_mut::<c_void>();
                (
                    cu!(cuGetProcAddress(
                        name.as_ptr(),
                        &mut address,
                        11040i32,
                        0u64
                    )),
                    address,
                )
            };
            let missing = (500, std::ptr::null_mut());
            assert_eq!(resolve(c"cuKernelGetParamInfo"), missing);
            assert_eq!(resolve(c"cuFuncGetParamInfo"), missing);
            assert_eq!(resolve(c"cuLaunchKernelEx"), missing);
            assert_eq!(resolve(c"cuMemAlloc"), (0, symbol("cuMemAlloc_v2")));
            assert_eq!(
                resolve(c"cuGetProcAddress"),
                (0, symbol("cuGetProcAddress"))
            );
            assert_eq!(resolve(c"cuCtxCreate"), (0, symbol("cuCtxCreate_v3")));
            let mut handle = 0u64;
            assert_eq!(
                cu!(cuMemCreate(
                    &mut handle,
                    GRANULE as usize,
                    &prop(true),
                    0u64
                )),
                1
            );
            let (mut offset, mut size) = (0usize, 0usize);
            assert_eq!(
                cu!(cuFuncGetParamInfo(
                    function("gb_fill"),
                    0usize,
                    &mut offset,
                    &mut size
                )),
                801
            );
        },
    );
}

#[test]
fn a_driver_from_the_future_knows_more() {
    clean(
        "a_driver_from_the_future_knows_more",
        &[("FAKE_CUDA_DRIVER", "99000")],
        || {
            start();
            let (result, address, status) = resolve("cuFutureCopyAsync", 99000, 0);
            assert_eq!(
                (result, address, status),
                (0, symbol("cuFutureCopyAsync"), 0)
            );
            let (to, from) = (alloc(64), alloc(64));
            write(from, 6);
            ok!(cuFutureCopyAsync(to, from, 8usize, 0usize));
            assert_eq!(read(to), 6);
        },
    );
}
