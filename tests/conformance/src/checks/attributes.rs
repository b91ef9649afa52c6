//! Pointer attributes. The columns are those of `facts attrs`.

use greenboost_abi::{CU_POINTER_ATTRIBUTE_P2P_TOKENS, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS};

use crate::api::Room;
use crate::bench::{Bench, GRANULE, MIB, host_vmm, must};
use crate::host::Host;
use crate::told::Told;

const NAMES: [&str; 22] = [
    "",
    "CONTEXT",
    "MEMORY_TYPE",
    "DEVICE_POINTER",
    "HOST_POINTER",
    "P2P_TOKENS",
    "SYNC_MEMOPS",
    "BUFFER_ID",
    "IS_MANAGED",
    "DEVICE_ORDINAL",
    "IS_LEGACY_IPC",
    "RANGE_START",
    "RANGE_SIZE",
    "MAPPED",
    "HANDLE_TYPES",
    "IS_RDMA",
    "ACCESS_FLAGS",
    "MEMPOOL",
    "MAPPING_SIZE",
    "MAPPING_BASE",
    "BLOCK_ID",
    "HW_DECOMPRESS",
];
const ALL: std::ops::RangeInclusive<i32> = 1..=21;
const BUFFER_ID: i32 = 7;
const BLOCK_ID: i32 = 20;
const HW_DECOMPRESS: i32 = 21;
/// Bytes that nobody wrote.
const BLANK: u8 = 0xee;

/// An answer: the code, the value, and how many bytes were written.
#[derive(Debug, PartialEq)]
enum Answer {
    No(i32),
    Value(u64, usize),
    /// A number that the driver counts up: only that it is there.
    Some,
    /// Successful, and nothing stored.
    Silent,
}

fn answer(attribute: i32, code: i32, room: &Room) -> Answer {
    let written = room.iter().rposition(|b| *b != BLANK).map_or(0, |i| i + 1);
    let mut word = [0; 8];
    let n = written.min(8);
    word[..n].copy_from_slice(&room[..n]);
    match (code, written) {
        (0, 0) => Answer::Silent,
        (0, _) if matches!(attribute, BUFFER_ID | BLOCK_ID) && word != [0; 8] => Answer::Some,
        (0, _) => Answer::Value(u64::from_le_bytes(word), written),
        _ => Answer::No(code),
    }
}

fn ask(b: &Bench, attribute: i32, p: u64) -> Answer {
    let mut room = [BLANK; 32];
    let code = b.cu.cuPointerGetAttribute(Some(&mut room), attribute, p);
    answer(attribute, code, &room)
}

fn ask_batch(b: &Bench, attribute: i32, p: u64) -> Answer {
    let mut room = [BLANK; 32];
    let to: *mut Room = &mut room;
    let code =
        b.cu.cuPointerGetAttributes(1, Some(&attribute), Some(&to), p);
    answer(attribute, code, &room)
}

fn newest(b: &Bench) -> i32 {
    let mut version = 0;
    must(
        b.cu.cuDriverGetVersion(Some(&mut version)),
        "cuDriverGetVersion",
    );
    if version >= 12080 {
        HW_DECOMPRESS
    } else {
        BLOCK_ID
    }
}

/// What kind of memory an address is in.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Alloc,
    Vram,
    Host,
    Pinned,
}

/// An address, and what is known of it.
struct Spot {
    name: &'static str,
    kind: Kind,
    p: u64,
    range: (u64, usize),
    mapping: (u64, usize),
}

fn expected(b: &Bench, s: &Spot, attribute: i32) -> Answer {
    let (alloc, device) = (
        s.kind == Kind::Alloc,
        matches!(s.kind, Kind::Alloc | Kind::Vram),
    );
    let wide = |v: u64| Answer::Value(v, 8);
    let int = |v: u64| Answer::Value(v, 4);
    match attribute {
        1 if alloc || s.kind == Kind::Pinned => wide(b.context as u64),
        1 => wide(0),
        2 => int(if device { 2 } else { 1 }),
        3 => wide(s.p),
        4 if s.kind == Kind::Pinned => wide(s.p),
        4 => Answer::No(1),
        5 if device => Answer::Value(0, 12),
        5 => Answer::No(1),
        6 => int(device.into()),
        7 | 20 => Answer::Some,
        8 | 9 => int(0),
        10 | 15 | 21 => int(alloc.into()),
        11 => wide(s.range.0),
        12 => wide(s.range.1 as u64),
        13 => int(1),
        16 => int(3),
        14 | 17 => wide(0),
        18 => wide(s.mapping.1 as u64),
        _ => wide(s.mapping.0),
    }
}

fn spots(b: &Bench) -> Vec<Spot> {
    let (large, small, pinned) = (b.alloc(64 * MIB), b.alloc(1000), b.pinned(MIB));
    let block = small & !(GRANULE as u64 - 1);
    let large_range = (large, 64 * MIB);
    let mut spots = vec![
        Spot {
            name: "A 64 MiB",
            kind: Kind::Alloc,
            p: large + 4104,
            range: large_range,
            mapping: large_range,
        },
        Spot {
            name: "A 1000 B",
            kind: Kind::Alloc,
            p: small + 8,
            range: (small, 1000),
            mapping: (block, GRANULE),
        },
        Spot {
            name: "pinned",
            kind: Kind::Pinned,
            p: pinned + 8,
            range: (pinned, MIB),
            mapping: (pinned, GRANULE),
        },
    ];
    let v = b.range("V64");
    let all = (v.p, v.size);
    spots.push(Spot {
        name: "V64",
        kind: Kind::Vram,
        p: v.p + 4104,
        range: all,
        mapping: all,
    });
    if host_vmm(&b.cu) {
        let (h, m) = (b.range("H64"), b.range("V32 H32"));
        let half = 32 * MIB;
        let (all, second) = ((m.p, m.size), m.p + half as u64);
        let end = m.p + m.size as u64 - 1;
        spots.extend([
            Spot {
                name: "H64",
                kind: Kind::Host,
                p: h.p + 4104,
                range: (h.p, h.size),
                mapping: (h.p, h.size),
            },
            Spot {
                name: "V32 H32, in V",
                kind: Kind::Vram,
                p: m.p + 8,
                range: all,
                mapping: (m.p, half),
            },
            Spot {
                name: "V32 H32, in H",
                kind: Kind::Host,
                p: second + 8,
                range: all,
                mapping: (second, half),
            },
            Spot {
                name: "V32 H32, last byte",
                kind: Kind::Host,
                p: end,
                range: all,
                mapping: (second, half),
            },
        ]);
    }
    spots
}

pub(super) fn single(told: &Told) {
    let b = Bench::open();
    let newest = newest(&b);
    for s in spots(&b) {
        for k in ALL.filter(|k| *k <= newest) {
            told.is(
                format!("{} {}", s.name, NAMES[k as usize]),
                ask(&b, k, s.p),
                expected(&b, &s, k),
            );
        }
    }
}

/// Addresses that the driver does not know, and what it may know of a reservation around them.
fn strangers(b: &Bench) -> Vec<(&'static str, u64, Option<usize>)> {
    let (large, small) = (b.alloc(64 * MIB), b.alloc(1000));
    vec![
        ("one past 64 MiB", large + 64 * MIB as u64, None),
        ("one past 1000 B", small + 1000, None),
        ("host memory", Host::new(MIB).address, None),
        ("null", 0, None),
        ("0x1234", 0x1234, None),
        ("reserved, unmapped", b.reserve(GRANULE), Some(GRANULE)),
    ]
}

pub(super) fn nowhere(told: &Told) {
    let b = Bench::open();
    let newest = newest(&b);
    for (name, p, _) in strangers(&b) {
        for k in ALL.filter(|k| *k <= newest) {
            told.is(
                format!("{name} {}", NAMES[k as usize]),
                ask(&b, k, p),
                Answer::No(1),
            );
        }
    }
}

pub(super) fn batch(told: &Told) {
    let b = Bench::open();
    let newest = newest(&b);
    for s in spots(&b).iter().filter(|s| s.kind != Kind::Pinned) {
        // Asking for P2P tokens, which the batch refuses, is what turns SYNC_MEMOPS on (seen on hardware).
        let steady = |k: &_| *k <= newest && *k != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS;
        for k in ALL.filter(steady) {
            let want = match k {
                4 => Answer::Value(0, 8),
                CU_POINTER_ATTRIBUTE_P2P_TOKENS => Answer::No(1),
                k => expected(&b, s, k),
            };
            told.is(
                format!("{} {}", s.name, NAMES[k as usize]),
                ask_batch(&b, k, s.p),
                want,
            );
        }
    }
    // What lies behind an allocation depends on the driver: here there are many others.
    for (name, p, reserved) in strangers(&b)
        .into_iter()
        .filter(|s| !s.0.starts_with("one past"))
    {
        for k in ALL.filter(|k| *k <= newest) {
            let want = match (k, reserved) {
                (4, _) => Answer::Value(p, 8),
                (CU_POINTER_ATTRIBUTE_P2P_TOKENS, _) => Answer::No(1),
                (9, _) => Answer::Value(0xffff_fffe, 4),
                (11 | 12, None) => Answer::Silent,
                (11, Some(_)) => Answer::Value(p, 8),
                (12, Some(size)) => Answer::Value(size as u64, 8),
                (2 | 6 | 8 | 10 | 13 | 15 | 16 | 21, _) => Answer::Value(0, 4),
                _ => Answer::Value(0, 8),
            };
            told.is(
                format!("{name} {}", NAMES[k as usize]),
                ask_batch(&b, k, p),
                want,
            );
        }
    }
}
